# What `security.acme` of NixOS runs in an instance that has said no more than it must: the script of the unit that orders and renews.
{ nixpkgs }:
let
  seed = import ../../nixos-modules/lib.nix {
    inherit nixpkgs;
    sopsNix = null;
  };
  made = seed.mkSeed {
    name = "web";
    module = {
      seed.expose.https.enable = true;
      security.acme.acceptTerms = true;
      security.acme.defaults.email = "ann@seed.example";
      security.acme.certs."web.example".webroot = "/var/lib/acme/acme-challenge";
    };
  };
  services = made.config.systemd.services;
in
# The name before it is that of NixOS 25.11 and later.
(services."acme-order-renew-web.example" or services."acme-web.example").script
