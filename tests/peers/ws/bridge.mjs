// A WebSocket client's way over HTTP/2: takes handshakes of HTTP/1.1 and asks the gateway for the same by extended CONNECT
// (RFC 8441), with the HTTP/2 of Node.js. So a judge that knows HTTP/1.1 only judges both.
//
//   node bridge.mjs GATEWAY AUTHORIZATION
//
// Prints its address once it listens. Ends when its standard input does, so that it can't outlive the test.
import { createHash } from "node:crypto";
import { connect, constants } from "node:http2";
import { createServer } from "node:http";

const [gateway, authorization] = process.argv.slice(2);
const session = connect(`http://${gateway}`);
session.on("error", (error) => fail(`the gateway's connection: ${error}`));
session.on("goaway", () => fail("the gateway said goodbye"));

const server = createServer((_, response) => response.writeHead(426).end());
server.on("upgrade", (request, socket, first) => {
  const { "sec-websocket-key": key, "sec-websocket-version": version, ...headers } = request.headers;
  for (const name of ["connection", "upgrade", "host"]) delete headers[name];
  const stream = session.request(
    {
      ...headers,
      ":method": "CONNECT",
      ":protocol": "websocket",
      ":scheme": "http",
      ":authority": gateway,
      ":path": request.url,
      "sec-websocket-version": version,
      authorization,
    },
    { endStream: false },
  );
  stream.on("response", ({ ":status": status, ...answer }) => {
    if (status !== 200) return fail(`the gateway answered ${status} to a WebSocket`);
    const accept = createHash("sha1").update(`${key}258EAFA5-E914-47DA-95CA-C5AB0DC85B11`).digest("base64");
    const lines = ["HTTP/1.1 101 Switching Protocols", "Connection: Upgrade", "Upgrade: websocket"];
    lines.push(`Sec-WebSocket-Accept: ${accept}`);
    for (const name of ["sec-websocket-protocol", "sec-websocket-extensions"]) {
      if (answer[name]) lines.push(`${name}: ${answer[name]}`);
    }
    socket.write(`${lines.join("\r\n")}\r\n\r\n`);
    if (first.length > 0) stream.write(first);
    socket.pipe(stream).pipe(socket);
  });
  socket.setNoDelay(true);
  socket.on("error", () => stream.close(constants.NGHTTP2_CANCEL));
  stream.on("error", () => socket.destroy());
});

session.once("remoteSettings", ({ enableConnectProtocol }) => {
  if (!enableConnectProtocol) return fail("the gateway does not offer extended CONNECT");
  server.listen(0, "127.0.0.1", () => console.log(`127.0.0.1:${server.address().port}`));
});
process.stdin.resume().on("end", () => process.exit(0));

function fail(message) {
  console.error(message);
  process.exit(1);
}
