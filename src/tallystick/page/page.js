// The page: how things stand is asked for, what happens is listened to, and both are shown.

import * as chat from "./chat.js";
import * as dialogs from "./dialogs.js";
import * as money from "./money.js";
import { ask, listen } from "./proxy.js";
import { announce, fillProblem } from "./show.js";

const SOON = 300;
const NOW_AND_THEN = 30000;
const outage = document.querySelector("#outage");
const trouble = document.querySelector("#trouble");

let overview = null;
let looking = null;
let again = false;

/** Asks how things stand; who asks meanwhile is answered by the next answer. */
async function look() {
  if (looking) {
    again = true;
    return looking;
  }
  looking = lookOnce();
  await looking;
  looking = null;
  if (!again) return undefined;
  again = false;
  return look();
}

async function lookOnce() {
  try {
    overview = await ask("/page/overview");
    money.standing(overview, acting);
    chat.standing(overview);
  } catch (problem) {
    if (problem.code !== "proxy_gone") fillProblem(trouble, problem);
  }
}

/** Does what a button of a job says; what goes wrong without a dialog is shown above the jobs. */
async function acting(action, job) {
  await withTrouble(() => dialogs.doWith(action, job, overview, look));
}

async function withTrouble(work) {
  try {
    await work();
  } catch (problem) {
    fillProblem(trouble, problem);
    announce(problem.message);
  }
}

let soon = null;

function lookSoon() {
  clearTimeout(soon);
  soon = setTimeout(look, SOON);
}

function happened(event) {
  chat.happened(event);
  if (overview) money.happened(event, overview.asset.decimals);
  lookSoon();
}

function heard(problem) {
  outage.hidden = problem === null;
  outage.textContent = problem ? `${problem.message} ${problem.mend ?? ""}` : "";
  if (!problem) look();
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
setInterval(look, NOW_AND_THEN);
listen(happened, heard);
