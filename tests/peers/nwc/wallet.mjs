// A wallet behind a Nostr relay, as nostr-tools signs and encrypts. The money is a node's that speaks phoenixd's API, so it moves.
//
//   node wallet.mjs URL nip44|nip04      (the node's password in PASSWORD)
//
// The relay is ours and does the least that NIP-01 asks for: it checks what it is given, keeps the wallet's note, and passes the
// rest on to who has asked for it. Prints the connection once both are there. Ends when its standard input does.
import { finalizeEvent, generateSecretKey, getPublicKey, verifyEvent } from "nostr-tools/pure";
import * as nip04 from "nostr-tools/nip04";
import * as nip44 from "nostr-tools/nip44";
import { WebSocket, WebSocketServer } from "ws";

const [url, scheme] = process.argv.slice(2);
const NOTE = 13194;
const REQUEST = 23194;
const RESPONSE = 23195;
const METHODS = ["pay_invoice", "lookup_invoice", "get_balance", "get_info", "get_budget", "list_transactions"];
const BUDGET_MSAT = 1_000_000_000;

// --- the relay ---

const kept = [];
const server = new WebSocketServer({ host: "127.0.0.1", port: 0, maxPayload: 1 << 17 });
const wants = (filter, event) =>
  Object.entries(filter).every(([name, values]) => {
    if (name === "kinds") return values.includes(event.kind);
    if (name === "authors") return values.includes(event.pubkey);
    if (name.startsWith("#")) return event.tags.some(([tag, value]) => tag === name[1] && values.includes(value));
    return name === "limit";
  });
server.on("connection", (socket) => {
  const filters = (socket.filters = new Map());
  const say = (...message) => socket.send(JSON.stringify(message));
  socket.on("message", (text) => {
    const [kind, ...rest] = JSON.parse(text);
    if (kind === "REQ") {
      const [id, ...asked] = rest;
      filters.set(id, asked);
      kept.filter((event) => asked.some((filter) => wants(filter, event))).forEach((event) => say("EVENT", id, event));
      say("EOSE", id);
    } else if (kind === "CLOSE") {
      filters.delete(rest[0]);
    } else if (kind === "EVENT") {
      const [event] = rest;
      const valid = verifyEvent(event);
      say("OK", event.id, valid, valid ? "" : "invalid: bad signature");
      if (!valid) return;
      if (event.kind === NOTE) kept.push(event);
      for (const other of server.clients) {
        for (const [id, asked] of other.filters) {
          if (asked.some((filter) => wants(filter, event))) other.send(JSON.stringify(["EVENT", id, event]));
        }
      }
    }
  });
});
await new Promise((listening) => server.on("listening", listening));
const relay = `ws://127.0.0.1:${server.address().port}`;

// --- the node ---

const authorization = `Basic ${Buffer.from(`:${process.env.PASSWORD}`).toString("base64")}`;
const node = async (path, form) => {
  const answer = await fetch(url + path, {
    method: form ? "POST" : "GET",
    headers: { authorization },
    body: form && new URLSearchParams(form),
  });
  return { status: answer.status, body: await answer.json().catch(() => ({})) };
};

class Fault extends Error {
  constructor(code, message) {
    super(message);
    this.code = code;
  }
}

// --- the wallet ---

const key = generateSecretKey();
const secret = generateSecretKey();
const client = getPublicKey(secret);
let spent = 0;
const latest = [];

const row = (payment) => ({
  type: "outgoing",
  state: payment.isPaid ? "settled" : payment.completedAt ? "failed" : "pending",
  payment_hash: payment.paymentHash,
  preimage: payment.isPaid ? payment.preimage : undefined,
  amount: payment.sent * 1000,
  fees_paid: payment.fees,
});
const methods = {
  get_info: async () => ({ alias: "a wallet", network: "regtest", methods: METHODS }),
  get_balance: async () => ({ balance: (await node("/getbalance")).body.balanceSat * 1000 }),
  get_budget: async () => ({ used_budget: spent, total_budget: BUDGET_MSAT, renewal_period: "never" }),
  list_transactions: async () => ({ transactions: latest }),
  lookup_invoice: async ({ payment_hash }) => {
    const { status, body } = await node(`/payments/outgoingbyhash/${payment_hash}`);
    if (status === 404) throw new Fault("NOT_FOUND", "no such payment");
    if (status !== 200) throw new Fault("INTERNAL", `the node answers ${status}`);
    return row(body);
  },
  pay_invoice: async ({ invoice }) => {
    const { status, body } = await node("/payinvoice", { invoice });
    if (status !== 200) throw new Fault("OTHER", `the node answers ${status}`);
    if (body.paymentPreimage === undefined) throw new Fault("PAYMENT_FAILED", body.reason ?? "it failed");
    const paid = await methods.lookup_invoice({ payment_hash: body.paymentHash });
    spent += paid.amount + paid.fees_paid;
    latest.unshift(paid);
    return { preimage: body.paymentPreimage, fees_paid: paid.fees_paid };
  },
};

const shared = nip44.getConversationKey(key, client);
const reader = {
  nip44: { encrypt: (text) => nip44.encrypt(text, shared), decrypt: (text) => nip44.decrypt(text, shared) },
  nip04: { encrypt: (text) => nip04.encrypt(key, client, text), decrypt: (text) => nip04.decrypt(key, client, text) },
}[scheme];
const now = () => Math.floor(Date.now() / 1000);
const socket = new WebSocket(relay);
const publish = (event) => socket.send(JSON.stringify(["EVENT", finalizeEvent({ created_at: now(), ...event }, key)]));
const seen = new Set();
socket.on("message", async (text) => {
  const [kind, , event] = JSON.parse(text);
  if (kind !== "EVENT" || !verifyEvent(event) || event.pubkey !== client || seen.has(event.id)) return;
  seen.add(event.id);
  const tag = (name) => event.tags.find(([tag]) => tag === name)?.[1];
  if (tag("expiration") !== undefined && Number(tag("expiration")) < now()) return;
  if ((tag("encryption") === "nip44_v2") !== (scheme === "nip44")) throw new Error(`asked in another way than ${scheme}`);
  const { method, params } = JSON.parse(await reader.decrypt(event.content));
  let answer;
  try {
    if (!METHODS.includes(method)) throw new Fault("NOT_IMPLEMENTED", method);
    answer = { result_type: method, error: null, result: await methods[method](params) };
  } catch (error) {
    if (!(error instanceof Fault)) console.error(error);
    answer = { result_type: method, error: { code: error.code ?? "INTERNAL", message: error.message }, result: null };
  }
  const content = await reader.encrypt(JSON.stringify(answer));
  publish({ kind: RESPONSE, content, tags: [["p", client], ["e", event.id]] });
});
await new Promise((open) => socket.on("open", open));
// A wallet of the time before there was a choice says nothing of it.
const tags = scheme === "nip44" ? [["encryption", "nip44_v2 nip04"]] : [];
publish({ kind: NOTE, content: METHODS.join(" "), tags });
const filter = { kinds: [REQUEST], authors: [client], "#p": [getPublicKey(key)] };
socket.send(JSON.stringify(["REQ", "requests", filter]));
await new Promise((kept) => socket.on("message", (text) => JSON.parse(text)[0] === "EOSE" && kept()));

const hex = Buffer.from(secret).toString("hex");
console.log(`nostr+walletconnect://${getPublicKey(key)}?relay=${encodeURIComponent(relay)}&secret=${hex}`);
process.stdin.resume().on("end", () => process.exit(0));
