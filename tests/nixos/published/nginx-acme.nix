# nginx with security.acme; the address in it is of another platform.
{ config, ... }:

let
  acmeServer = "http://seed-controller.seed-system.svc.cluster.local:9876/acme/directory";
in {
  seed.expose.http.enable = true;
  seed.expose.https.enable = true;
  seed.storage.acme = { size = "100Mi"; mountPoint = "/var/lib/acme"; };

  security.acme = {
    acceptTerms = true;
    defaults.server = acmeServer;
    defaults.email = "you@example.com";
  };

  services.nginx = {
    enable = true;
    virtualHosts."my-app.example.com" = {
      enableACME = true;
      forceSSL = true;
      root = "/seed/storage/data/www";
    };
  };
}
