// The API that is judged through the gateway: it echoes every message, over the server of the `ws` package.
//
// Prints its address once it listens. Ends when its standard input does, so that it can't outlive the test.
import { WebSocketServer } from "ws";

const server = new WebSocketServer({
  host: "127.0.0.1",
  port: 0,
  maxPayload: 64 * 1024 * 1024,
  perMessageDeflate: { serverNoContextTakeover: false },
});
server.on("connection", (socket) => {
  socket.on("message", (message, isBinary) => socket.send(message, { binary: isBinary }));
  // The judge breaks the rules on purpose; what it is told then is in its report.
  socket.on("error", () => {});
});
server.on("listening", () => console.log(`127.0.0.1:${server.address().port}`));
process.stdin.resume().on("end", () => process.exit(0));
