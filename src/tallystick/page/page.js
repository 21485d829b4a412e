// The page: how things stand is asked for, what happens is listened to, and both are shown.

import * as chat from "./chat.js";
import * as dialogs from "./dialogs.js";
import * as money from "./money.js";
import { ask, listen, Problem } from "./proxy.js";
import { fillProblem, keepFocus } from "./show.js";

const SOON = 500;
const NOW_AND_THEN = 30000;
const GONE = ["proxy_gone", "page_refused"];
const outage = document.querySelector("#outage");
const trouble = document.querySelector("#trouble");

let overview = null;
const problems = { action: null, standing: null };
let looking = Promise.resolve();
let queued = null;

/** Asks how things stand, after whoever asks already; resolves once that is shown. */
function look() {
  queued ??= looking.then(() => {
    queued = null;
    looking = lookOnce();
    return looking;
  });
  return queued;
}

async function lookOnce() {
  try {
    overview = await ask("/page/overview");
    money.standing(overview, acting);
    chat.standing(overview);
    wrong("standing", overview.host_problem ? new Problem(overview.host_problem) : null);
  } catch (problem) {
    if (!GONE.includes(problem.code)) wrong("standing", problem);
  }
}

/** What is wrong with what was done last, or else with how things stand; null: nothing is. */
function wrong(kind, problem) {
  problems[kind] = problem;
  fillProblem(trouble, problems.action ?? problems.standing);
}

/** Does what a button of a job says; what goes wrong without a dialog is shown above the jobs. */
async function acting(action, job) {
  await withTrouble(() => dialogs.doWith(action, job, look));
}

async function withTrouble(work) {
  wrong("action", null);
  try {
    await work();
  } catch (problem) {
    wrong("action", problem);
  }
  keepFocus();
}

let soon = null;

/** However much happens, the chain is asked at a bounded rate, and not for a page that nobody sees. */
function lookSoon() {
  soon ??= setTimeout(() => {
    soon = null;
    if (!document.hidden) look();
  }, SOON);
}

function happened(event) {
  chat.happened(event);
  money.happened(event);
  lookSoon();
}

function heard(problem) {
  outage.hidden = problem === null;
  outage.textContent = problem ? told(problem) : "";
  if (!problem) look();
}

function told(problem) {
  if (problem.code === "page_refused") return "The proxy was started anew: load this page again.";
  return `${problem.message} ${problem.mend ?? ""}`;
}

/** On a narrow screen one of both views is shown. */
function turn() {
  const name = location.hash === "#money" ? "money" : "chat";
  document.body.dataset.view = name;
  for (const link of document.querySelectorAll("nav a")) {
    if (link.hash === `#${name}`) link.setAttribute("aria-current", "page");
    else link.removeAttribute("aria-current");
  }
}

document.querySelector("#open").addEventListener("click", () => dialogs.open(overview, look));
document.querySelector("#withdraw").addEventListener("click", () => withTrouble(() => dialogs.withdraw(look)));
addEventListener("hashchange", turn);
turn();
addEventListener("visibilitychange", lookSoon);
setInterval(lookSoon, NOW_AND_THEN);
listen(happened, heard);
