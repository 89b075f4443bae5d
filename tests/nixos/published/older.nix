# Every spelling of the documentation before that one.
{ pkgs, ... }:
{
seed.size = "s";
seed.expose.http = 8080; # shorthand
seed.expose.dns = { port = 53; protocol = "dns"; }; # explicit
seed.expose.grpc = { port = 9090; protocol = "grpc"; };
seed.storage.data = "1Gi"; # → /seed/storage/data
seed.storage.cache = { size = "500Mi"; mountPoint = "/tmp/cache"; }; # custom mount
seed.connect.redis = "my-redis";
seed.connect.db = { service = "postgres"; port = 5432; };
seed.shoot.enable = true;
services.nginx.enable = true;
services.nginx.virtualHosts.default = {
listen = [{ addr = "0.0.0.0"; port = 8080; }];
root = "/seed/storage/data/www";
};
systemd.services.myapp.serviceConfig.RuntimeDirectory = "myapp";
systemd.tmpfiles.rules = [ "d /seed/storage/data 0755 myapp myapp -" ];
systemd.services.myapp.serviceConfig.EnvironmentFile = "/run/seed/env";
networking.firewall.allowedTCPPorts = [ 9090 ];
}
