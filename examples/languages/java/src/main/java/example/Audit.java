package example;

import io.opentelemetry.api.common.AttributeKey;
import io.opentelemetry.api.trace.Span;
import java.util.List;

/** Makes the current request's span an audit record: who did what, to what. */
final class Audit {
  /** Whom you have verified. */
  record User(String name, List<String> roles) {}

  private static final AttributeKey<List<String>> ROLES = AttributeKey.stringArrayKey("audit.actor.roles");

  private Audit() {}

  /**
   * Call it as soon as it is known what the request wants, before anybody decides whether it may: then a refusal is a record too.
   * Call it again with what becomes known later; the last word counts. The outcome comes from the response's status.
   *
   * @param user null when nobody is signed in
   */
  static void record(String action, String targetType, String targetId, User user) {
    Span span = Span.current();
    span.setAttribute("audit.action", action);
    span.setAttribute("audit.target.type", targetType);
    span.setAttribute("audit.target.id", targetId);
    if (user == null) {
      span.setAttribute("audit.actor.id", "anonymous");
      return;
    }
    span.setAttribute("audit.actor.id", user.name());
    span.setAttribute("audit.actor.type", "user");
    span.setAttribute(ROLES, user.roles());
    span.setAttribute("audit.actor.auth_method", "bearer");
    // Counts where the collector knows the sender as one that may say so.
    span.setAttribute("audit.actor.origin", "authenticated");
  }
}
