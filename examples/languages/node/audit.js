// Make the current request's span an audit record: who did what, to what.
"use strict";

const { trace } = require("@opentelemetry/api");

/**
 * Call it as soon as it is known what the request wants, before anybody decides whether it may: then a refusal is a record too.
 * Call it again with what becomes known later; the last word counts. The outcome comes from the response's status.
 *
 * user: whom you have verified, or undefined when nobody is signed in.
 */
function audit({ action, targetType, targetId, user, reason }) {
  const attributes = {
    "audit.action": action,
    "audit.target.type": targetType,
    "audit.target.id": targetId,
    "audit.actor.id": user ? user.name : "anonymous",
    "audit.reason": reason,
  };
  if (user) {
    attributes["audit.actor.type"] = "user";
    attributes["audit.actor.roles"] = user.roles;
    attributes["audit.actor.auth_method"] = "bearer";
    attributes["audit.actor.origin"] = "authenticated"; // counts where the collector knows the sender as one that may say so
  }
  trace.getActiveSpan()?.setAttributes(attributes);
}

module.exports = { audit };
