// Buys with Alby's lightning-tools, and asks again with the credential that it got.
//
//   node alby.mjs fetch402|fetchWithL402 URL
//
// Prints what came of it as one line of JSON.
import * as client from "@getalby/lightning-tools/402";
import { LndWallet } from "./lnd.mjs";

const [name, url] = process.argv.slice(2);
const wallet = new LndWallet();
const bought = await client[name](url, {}, { wallet });
const { credentials, amountSat, paid, preimage } = bought.payment;
const again = await client[name](url, {}, { wallet, credentials });
const outcome = {
  status: bought.status,
  body: await bought.text(),
  paid,
  amount_sat: amountSat,
  preimage,
  credential: credentials.value,
  again: { status: again.status, body: await again.text(), paid: again.payment.paid },
};
console.log(JSON.stringify(outcome));
