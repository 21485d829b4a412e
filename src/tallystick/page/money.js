// What is where: the wallet, the escrow, each job, and what happened to them.

import { less, share, shown, sum } from "./amounts.js";
import { announce, clock, keepFocus, put, stamp, when } from "./show.js";

const TOLD = 100;
const view = {
  jobs: document.querySelector("#jobs"),
  closed: document.querySelector("#closed-jobs"),
  none: document.querySelector("#no-jobs"),
  kept: document.querySelector("#kept"),
  open: document.querySelector("#open"),
  happened: document.querySelector("#happened"),
  nothing: document.querySelector("#nothing"),
  later: document.querySelector("#later"),
  hosts: document.querySelector("#hosts"),
};

/** Shows how things stand. `act(action, job)` is called for what the payer wants of a job. */
export function standing(now, act) {
  const had = document.activeElement;
  const open = now.jobs.filter((job) => job.status !== "closed");
  const closed = now.jobs.filter((job) => job.status === "closed");
  sums(now, open.filter((job) => job.symbol === now.asset.symbol));
  view.open.disabled = now.models.length === 0;
  view.none.hidden = open.length > 0;
  view.later.hidden = false;
  rows(view.jobs, open, act);
  rows(view.closed, closed, act);
  hosts(now.hosts);
  put(document, "#closed-count", closed.length ? `(${closed.length})` : "(none)");
  if (had !== document.body) keepFocus(had);
}

function sums(now, open) {
  const { asset } = now;
  const escrow = sum(open.map((job) => less(job.deposit, job.settled, asset.decimals)), asset.decimals);
  put(document, "#paying", `pays ${paid(now.hosts)} from ${now.payer}`);
  put(document, "#wallet", shown(now.wallet, asset));
  put(document, "#escrow", shown(escrow, asset));
  put(document, "#refundable", shown(sum(open.map((job) => job.refundable), asset.decimals), asset));
  put(document, "#cap-day", shown(now.cap_day, asset));
  put(document, "#room", shown(now.room, asset));
  view.kept.hidden = now.kept === "0";
  put(view.kept, "span", `${shown(now.kept, asset)} came back and wait in the contract.`);
}

/** Who is paid: where a job is in use, or else who may be. */
function paid(hosts) {
  const asked = hosts.filter((host) => host.asked);
  if (asked.length) return asked.map((host) => host.url).join(" and ");
  return hosts.length === 1 ? hosts[0].url : `one of ${hosts.length} hosts that are known`;
}

/** The hosts, each with the payer's own record of it. */
function hosts(all) {
  view.hosts.replaceChildren(...all.map((host) => {
    const row = document.createElement("li");
    row.append(cell("b", host.url || host.host), " ", cell("span", host.trouble || host.record));
    row.dataset.aside = host.aside;
    return row;
  }));
}

/** One row for each job; a row that is there stays, with what has the focus in it. */
function rows(list, jobs, act) {
  const there = new Map([...list.children].map((row) => [row.dataset.job, row]));
  jobs.forEach((job, place) => {
    const row = there.get(String(job.job_id)) ?? made(job);
    there.delete(String(job.job_id));
    fill(row, job, act);
    if (list.children[place] !== row) list.insertBefore(row, list.children[place] ?? null);
  });
  for (const row of there.values()) row.remove();
}

function made(job) {
  const row = stamp("job");
  const title = row.querySelector("h4");
  row.dataset.job = job.job_id;
  title.textContent = `Job ${job.job_id}`;
  title.id = `job-${job.job_id}`;
  row.querySelector("article").setAttribute("aria-labelledby", title.id);
  for (const button of row.querySelectorAll("button")) {
    button.setAttribute("aria-label", `${button.textContent} job ${job.job_id}`);
  }
  return row;
}

function fill(row, job, act) {
  row.dataset.status = job.status;
  put(row, ".state", state(job));
  put(row, ".where", `${job.model} at ${job.host_url.replace(/^https?:\/\//, "")}`);
  put(row, ".deposit", shown(job.deposit, job));
  put(row, ".spent", shown(job.spent, job));
  put(row, ".back", job.status === "closed" ? "Refunded" : "Refundable");
  put(row, ".refundable", shown(job.refundable, job));
  row.querySelector(".level i").style.width = `${share(job.spent, job.deposit, job.decimals)}%`;
  for (const button of row.querySelectorAll("button")) {
    const { action } = button.dataset;
    button.hidden = action !== "receipt" && !job.actions.includes(action);
    button.onclick = () => act(action, job, button);
  }
}

function state(job) {
  if (job.status === "closed") return "closed";
  if (job.actions.includes("reclaim")) return "to be reclaimed";
  if (job.status === "completing") return `asked to complete; reclaim from ${when(job.closes_at)}`;
  return job.requests ? `open, answering ${job.requests}` : "open";
}

const SAID = {
  opened: (it) => ["opened", it.deposit],
  topped_up: (it) => ["topped up", it.amount],
  signed: (it) => [`checkpoint signed at ${it.tokens} tokens`, it.owed],
  settled: (it) => [`settled on chain at ${it.tokens} tokens`, it.owed],
  balance_low: (it) => ["running low; left", it.left],
  prompt_ahead: (it) => [`signed for ${it.prompt_tokens} prompt tokens ahead`, it.cost],
  overcount: (it) => [`the host counted ${it.counted} ${it.what.replace("_", " ")}, signed ${it.signed}`],
  stopped: (it) => [`stopped: ${it.reason}`],
  completed: (it) => ["completed; came back", it.refund],
  host_chosen: (it) => [`is asked for ${it.model} from now on: ${it.why}`],
  set_aside: (it) => [`is set aside for ${it.seconds} s: ${it.cause}`],
};

/** Tells an event, newest first; loud ones also to a screen reader. */
export function happened(event) {
  const [what, amount] = SAID[event.kind](event);
  const row = document.createElement("li");
  const text = `${event.job_id ? `Job ${event.job_id}` : event.url} ${what}`;
  row.append(cell("time", clock(new Date())), cell("span", text), cell("b", amount ? shown(amount, event) : ""));
  view.happened.prepend(row);
  view.nothing.hidden = true;
  while (view.happened.children.length > TOLD) view.happened.lastChild.remove();
  if (!["signed", "settled"].includes(event.kind)) announce(`${text} ${amount ? shown(amount, event) : ""}`);
}

function cell(kind, text) {
  const node = document.createElement(kind);
  node.textContent = text;
  return node;
}
