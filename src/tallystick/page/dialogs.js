// What the payer does about its money: a dialog for each action that wants an answer.

import { plain, shown } from "./amounts.js";
import { act, download, onLocked, useKey } from "./proxy.js";
import { announce, fillProblem, keepFocus, put, when } from "./show.js";

const dialogs = Object.fromEntries(
  [...document.querySelectorAll("dialog")].map((dialog) => [dialog.id, dialog]),
);

/** Shows a dialog, and does what it asks for; it stays, and says why, as long as that fails. */
function show(dialog, submit) {
  const form = dialog.querySelector("form");
  const problem = dialog.querySelector(".problem");
  fillProblem(problem, null);
  form.onsubmit = async (event) => {
    event.preventDefault();
    const button = form.querySelector("[type=submit]");
    if (button.getAttribute("aria-disabled") === "true") return;
    button.setAttribute("aria-disabled", "true");
    try {
      announce("One moment …");
      announce(await submit(new FormData(form)));
      dialog.close();
      keepFocus();
    } catch (error) {
      fillProblem(problem, error);
    }
    button.removeAttribute("aria-disabled");
  };
  dialog.showModal();
}

/** Opens a job with a deposit that is typed. */
export function open(now, then) {
  const dialog = dialogs.opening;
  const { asset } = now;
  dialog.querySelector("select").replaceChildren(...now.models.map((each) => new Option(each.name, each.name)));
  dialog.querySelector("input").value = now.opening_most;
  put(dialog, ".symbol", asset.symbol);
  put(dialog, "#opening-most", most(now.opening_most, asset));
  show(dialog, async (form) => {
    const job = await act("/page/jobs", { model: form.get("model"), deposit: form.get("amount").trim() });
    await then();
    return `Job ${job.job_id} is open.`;
  });
}

/** What the caps leave. */
function most(digits, asset) {
  return digits === "0"
    ? "The proxy's caps leave nothing more: start it with a higher --deposit or --max-per-day."
    : `At most ${plain(digits, asset)}, as the proxy's --deposit and --max-per-day are.`;
}

function topUp(job, then) {
  const dialog = dialogs.topping;
  put(dialog, ".number", job.job_id);
  put(dialog, ".symbol", job.symbol);
  put(dialog, "#topping-most", most(job.top_up_most, job));
  dialog.querySelector("input").value = "";
  show(dialog, async (form) => {
    await act(`/page/jobs/${job.job_id}/top-up`, { amount: form.get("amount").trim() });
    await then();
    return `Job ${job.job_id} is topped up.`;
  });
}

function complete(job, then) {
  const dialog = dialogs.completing;
  put(dialog, ".number", job.job_id);
  put(dialog, ".rest", shown(job.refundable, job));
  dialog.querySelector("input").checked = false;
  show(dialog, async (form) => {
    const past = form.get("on_chain") !== null;
    const done = await act(`/page/jobs/${job.job_id}/complete`, { on_chain: past });
    await then();
    return past ? `Asked on chain. Reclaim job ${job.job_id} from ${when(done.closes_at)}.` : came(done);
  });
}

function came(done) {
  return `Job ${done.job_id} is closed: ${shown(done.refund, done)} came back.`;
}

async function reclaim(job, then) {
  const done = await act(`/page/jobs/${job.job_id}/reclaim`);
  await then();
  announce(came(done));
}

async function receipt(job) {
  const file = await download(`/page/jobs/${job.job_id}/receipt`);
  const link = document.createElement("a");
  link.href = URL.createObjectURL(file);
  link.download = `job-${job.job_id}-receipt.json`;
  link.click();
  URL.revokeObjectURL(link.href);
  announce(`The receipt of job ${job.job_id} is downloaded; tally verify checks it.`);
}

const ACTIONS = { top_up: topUp, complete, reclaim, receipt };

/** Does what the payer wants of a job; `then` looks again how things stand. */
export function doWith(action, job, then) {
  return ACTIONS[action](job, then);
}

/** Pays out what the contract keeps for the payer. */
export async function withdraw(then) {
  await act("/page/withdraw");
  await then();
  announce("It is in your wallet.");
}

onLocked((refused) => new Promise((resolve) => {
  show(dialogs.unlocking, async (form) => {
    useKey(form.get("key"));
    resolve();
    return "";
  });
  if (refused) fillProblem(dialogs.unlocking.querySelector(".problem"), { message: "That is not its key." });
}));

dialogs.unlocking.addEventListener("cancel", (event) => event.preventDefault());
for (const button of document.querySelectorAll("dialog .cancel")) {
  button.addEventListener("click", () => button.closest("dialog").close());
}
