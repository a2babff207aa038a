// A wallet for clients in JavaScript: it pays with an lnd, over that node's REST interface.
//
// Where the node is stands in the environment: LND_REST (its address), LND_CERTIFICATE and LND_MACAROON (files).
import { readFileSync } from "node:fs";
import { request } from "node:https";

/** How long a payment may take, in seconds, and what it may cost besides its amount, in satoshi. */
const TIMEOUT = 60;
const FEE_MAX = 10;

export class LndWallet {
  #address = process.env.LND_REST;
  #certificate = readFileSync(process.env.LND_CERTIFICATE);
  #macaroon = readFileSync(process.env.LND_MACAROON).toString("hex");

  /** Pays `invoice`: the preimage in hexadecimal digits, and the fees in millisatoshi. */
  async payInvoice({ invoice }) {
    const payment = { payment_request: invoice, timeout_seconds: TIMEOUT, fee_limit_sat: FEE_MAX };
    const updates = await this.#post("/v2/router/send", payment);
    // One object a line; the last one tells how it ended.
    const { result, error } = JSON.parse(updates.trim().split("\n").at(-1));
    if (result?.status !== "SUCCEEDED") {
      throw new Error(`the payment ended as ${result?.status}: ${result?.failure_reason ?? error?.message}`);
    }
    return { preimage: result.payment_preimage, fees_paid: Number(result.fee_msat) };
  }

  #post(path, body) {
    return new Promise((resolve, reject) => {
      const options = {
        method: "POST",
        ca: this.#certificate,
        headers: { "Grpc-Metadata-macaroon": this.#macaroon, "Content-Type": "application/json" },
      };
      const call = request(new URL(path, this.#address), options, async (response) => {
        try {
          let text = "";
          for await (const part of response.setEncoding("utf8")) text += part;
          if (response.statusCode === 200) resolve(text);
          else reject(new Error(`lnd answers ${response.statusCode}: ${text}`));
        } catch (error) {
          reject(error);
        }
      });
      call.on("error", reject).end(JSON.stringify(body));
    });
  }
}
