# The summary of options.
{
seed.size = "xs";                    # xs|s|m|l|xl — VM sizing tier
seed.expose.http.enable = true;
seed.expose.myapp = { port = 9090; protocol = "udp"; };
seed.expose.other = 9091;
seed.storage.data = "1Gi";
seed.rollout = "recreate";          # or "rolling"
seed.acme = true;                   # auto-detected from expose protocols
seed.shoot.enable = false;          # ephemeral VM forking
}
