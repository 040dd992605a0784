// A small service of orders. Only the call of Audit.Record() is for the audit trail.
// Not run by the project's tests: they have no .NET.
using System.Diagnostics;
using OpenTelemetry.Trace;

var users = new Dictionary<string, User>
{
    ["Bearer alice-token"] = new("alice", ["support", "sales"]),
    ["Bearer bob-token"] = new("bob", ["sales"]),
};

var builder = WebApplication.CreateBuilder(args);
// OpenTelemetry's own SDK, set up by its own variables: OTEL_SERVICE_NAME, OTEL_EXPORTER_OTLP_ENDPOINT and so on.
builder.Services.AddOpenTelemetry().WithTracing(tracing => tracing.AddAspNetCoreInstrumentation().AddOtlpExporter());
var app = builder.Build();

app.MapPost("/orders/{id}/refund", (string id, HttpRequest request) =>
{
    var user = users.GetValueOrDefault(request.Headers.Authorization.ToString()); // however you verify it
    Audit.Record("REFUND", "orders", id, user);
    if (user is null) return Results.StatusCode(401);
    if (!user.Roles.Contains("support")) return Results.StatusCode(403);
    return Results.Ok(new { refunded = id });
});

app.Run($"http://127.0.0.1:{Environment.GetEnvironmentVariable("PORT")}");

/// <summary>Whom you have verified.</summary>
record User(string Name, string[] Roles);

/// <summary>Makes the current request's span an audit record: who did what, to what.</summary>
static class Audit
{
    /// <summary>
    /// Call it as soon as it is known what the request wants, before anybody decides whether it may: then a refusal is a
    /// record too. Call it again with what becomes known later; the last word counts. The outcome comes from the response's
    /// status. A user of null: nobody is signed in.
    /// </summary>
    public static void Record(string action, string targetType, string targetId, User? user)
    {
        var span = Activity.Current; // ASP.NET Core's own: .NET calls a span an activity
        span?.SetTag("audit.action", action);
        span?.SetTag("audit.target.type", targetType);
        span?.SetTag("audit.target.id", targetId);
        span?.SetTag("audit.actor.id", user?.Name ?? "anonymous");
        if (user is null) return;
        span?.SetTag("audit.actor.type", "user");
        span?.SetTag("audit.actor.roles", user.Roles);
        span?.SetTag("audit.actor.auth_method", "bearer");
        // Counts where the collector knows the sender as one that may say so.
        span?.SetTag("audit.actor.origin", "authenticated");
    }
}
