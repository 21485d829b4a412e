// Amounts are digits of whole units, exactly. Nothing here is ever a floating-point number.

const MILLION_DIGITS = 6;

/** "1.5" with 6 decimals as 1500000n. */
export function units(digits, decimals) {
  const [whole, fraction = ""] = digits.split(".");
  return BigInt(whole + fraction.padEnd(decimals, "0"));
}

/** 1500000n with 6 decimals as "1.5". */
export function digits(units, decimals) {
  const sign = units < 0n ? "-" : "";
  const all = String(units < 0n ? -units : units).padStart(decimals + 1, "0");
  const fraction = all.slice(all.length - decimals).replace(/0+$/, "");
  const whole = all.slice(0, all.length - decimals);
  return fraction ? `${sign}${whole}.${fraction}` : sign + whole;
}

/** What tokens cost at prices per million, in whole units. */
export function cost(tally, prices, decimals) {
  const price = units(prices.price, decimals);
  const promptPrice = units(prices.prompt_price, decimals);
  const value = BigInt(tally.tokens) * price + BigInt(tally.prompt_tokens) * promptPrice;
  return digits(value, decimals + MILLION_DIGITS);
}

/** Digits with so many decimals that columns align: "2" as "2.000000". No digit is ever left out. */
export function aligned(digits, decimals) {
  const [whole, fraction = ""] = digits.split(".");
  return `${whole}.${fraction.padEnd(Math.min(decimals, 6), "0")}`;
}

/** An amount as it is shown: "2.000000 tUSD". */
export function shown(digits, asset) {
  return `${aligned(digits, asset.decimals)} ${asset.symbol}`;
}

/** An amount in a sentence: "2 tUSD". */
export function plain(digits, asset) {
  return `${digits} ${asset.symbol}`;
}

/** The sum of amounts of one asset. */
export function sum(all, decimals) {
  return digits(all.reduce((total, each) => total + units(each, decimals), 0n), decimals);
}

/** `one` less `other`. */
export function less(one, other, decimals) {
  return digits(units(one, decimals) - units(other, decimals), decimals);
}

/** How much of `whole` a part is, in per cent, for a bar. */
export function share(part, whole, decimals) {
  const all = units(whole, decimals);
  return all ? Number((units(part, decimals) * 10000n) / all) / 100 : 0;
}
