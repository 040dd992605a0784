// A small service of orders. Only the call of audit() is for the audit trail.
"use strict";

const http = require("node:http");
const { audit } = require("./audit");

const USERS = {
  "Bearer alice-token": { name: "alice", roles: ["support", "sales"] },
  "Bearer bob-token": { name: "bob", roles: ["sales"] },
};

function answer(response, status, body) {
  response.writeHead(status, { "content-type": "application/json" });
  response.end(JSON.stringify(body));
}

const server = http.createServer((request, response) => {
  const refund = /^\/orders\/(\d+)\/refund$/.exec(request.url);
  if (request.method !== "POST" || !refund) {
    return answer(response, 404, { error: "no such thing" });
  }
  const user = USERS[request.headers.authorization]; // however you verify it
  audit({ action: "REFUND", targetType: "orders", targetId: refund[1], user });
  if (!user) {
    return answer(response, 401, { error: "who are you?" });
  }
  if (!user.roles.includes("support")) {
    return answer(response, 403, { error: "only support may" });
  }
  return answer(response, 200, { refunded: refund[1] });
});

server.listen(Number(process.env.PORT), "127.0.0.1");
