// Small things that all parts of the page do to show something.

const MOVES = { payer: "Your move", host: "The host's move", nobody: "Nobody's move" };
const status = document.querySelector("#status");
const CLOCK = new Intl.DateTimeFormat(undefined, { hour: "2-digit", minute: "2-digit", second: "2-digit", hourCycle: "h23" });
const DATE = new Intl.DateTimeFormat(undefined, { dateStyle: "medium", timeStyle: "short" });

/** A copy of what a template holds. */
export function stamp(name) {
  return document.querySelector(`template#${name}`).content.firstElementChild.cloneNode(true);
}

/** Writes a text, unless it stands there already: a screen reader is not told twice. */
export function put(root, selector, text) {
  const node = root.querySelector(selector);
  if (node.textContent !== String(text)) node.textContent = text;
}

/** Has a screen reader say something, once. */
export function announce(text) {
  status.textContent = text;
}

/** Shows what is wrong, whose move it is and what mends it; null: nothing is. */
export function fillProblem(node, problem) {
  node.hidden = !problem;
  if (!problem) return;
  const what = document.createElement("strong");
  what.textContent = problem.message.charAt(0).toUpperCase() + problem.message.slice(1);
  const mend = document.createElement("p");
  mend.textContent = problem.mend ? `${MOVES[problem.move] ?? "To mend it"}: ${problem.mend}` : "";
  node.replaceChildren(what, mend);
}

/** Where the focus goes when what had it has gone, or is not seen any more. */
export function keepFocus(had = document.activeElement) {
  if (had === document.body || had.getClientRects().length === 0) document.querySelector("#open").focus();
}

/** The time of day. */
export function clock(date) {
  return CLOCK.format(date);
}

/** A time of the chain's clock, in seconds. */
export function when(seconds) {
  return DATE.format(new Date(1000 * seconds));
}
