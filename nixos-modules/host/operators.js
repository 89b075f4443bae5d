// Members of the group seed-operators start, stop and restart what is Seed's, and nothing else.
polkit.addRule(function (action, subject) {
  if (action.id != "org.freedesktop.systemd1.manage-units" || !subject.isInGroup("seed-operators")) {
    return polkit.Result.NOT_HANDLED;
  }
  var unit = action.lookup("unit") || "";
  var verb = action.lookup("verb") || "";
  var ours = /^seed-(agent\.service|serve\.service|vm@[a-z0-9-]+\.service)$/.test(unit);
  var harmless = ["start", "stop", "restart", "try-restart", "reset-failed"].indexOf(verb) >= 0;
  return ours && harmless ? polkit.Result.YES : polkit.Result.NOT_HANDLED;
});
