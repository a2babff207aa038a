// Reads the challenge with lsat-js, has the invoice paid, and asks again with the token that lsat-js makes of it.
//
//   node lsat.mjs URL
//
// Prints what lsat-js read, and what came of the token, as one line of JSON.
import { Identifier, Lsat } from "lsat-js";
import { LndWallet } from "./lnd.mjs";

const url = process.argv[2];
const asked = await fetch(url);
// Several lines become one here, joined by commas.
const lsat = Lsat.fromHeader(asked.headers.get("www-authenticate"));
const read = {
  payment_hash: lsat.paymentHash,
  // What the identifier in the macaroon says, by itself.
  identifier: Identifier.fromString(lsat.id).paymentHash.toString("hex"),
  macaroon: lsat.baseMacaroon,
  invoice: lsat.invoice,
  amount_sat: lsat.invoiceAmount,
  caveats: lsat.getCaveats().map((caveat) => caveat.encode()),
};

const { preimage } = await new LndWallet().payInvoice({ invoice: lsat.invoice });
lsat.setPreimage(preimage);
const ask = async () => {
  const answer = await fetch(url, { headers: { authorization: lsat.toToken() } });
  return { status: answer.status, body: await answer.text() };
};
const outcome = { asked: asked.status, read, satisfied: lsat.isSatisfied(), ...(await ask()), again: await ask() };
console.log(JSON.stringify(outcome));
