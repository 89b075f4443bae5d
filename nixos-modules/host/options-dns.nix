# services.seed.dns: what the DNS door says beside the names of instances, and to whom.
{ lib, ... }:
let
  inherit (lib) mkOption types;
  value = import ./value.nix { inherit lib; };
  restarts = "Changing it restarts the agent and the doors; no instance is touched.";
  list =
    type: example: description:
    mkOption {
      type = types.listOf type;
      default = [ ];
      inherit example description;
    };
in
{
  options.services.seed.dns = {
    nameservers = list value.domain [ "ns2.example.net" ] ''
      Name servers of the zone besides `ns1.<domain>`, which is this host: those of the secondaries. ${restarts}
    '';
    caa = list value.domain [ "letsencrypt.org" ] ''
      The only authorities that may issue certificates for names of the zone (CAA records). Empty: any may. ${restarts}
    '';
    inside = list value.network [ "192.168.1.0/24" ] ''
      Networks that are routed to the instances, and are therefore told their inside addresses. With `publicAddresses`, everybody else
      is told public ones; instances of another namespace are never told inside ones. ${restarts}
    '';
    answersPerSecond = mkOption {
      type = types.ints.between 0 100000;
      default = 200;
      example = 1000;
      description = ''
        Answers a second over UDP to one neighbourhood (/24, /56). Past it, questions are sent to TCP, so that nobody can be flooded by
        way of this host. 0: no limit. ${restarts}
      '';
    };
    secondaries = list value.server [ "192.0.2.53" ] ''
      Servers that are told when the zone has changed, and may take it whole. They need `transferKey`. ${restarts}
    '';
    transferKey = mkOption {
      type = types.nullOr value.file;
      default = null;
      example = "/etc/credstore.encrypted/transfer_key";
      description = ''
        A file with the key that the secondaries share with this host (one line, `hmac-sha256:NAME:SECRET`, as `kdig -y` takes it),
        encrypted for this host with `systemd-creds encrypt --name=transfer_key KEY FILE`. It is decrypted by systemd in memory, for the
        doors alone, and is never in the Nix store. One that is not encrypted, and that the user seed can read, is
        `settings.dns.transfer_key`. ${restarts}
      '';
    };
    dnssec = mkOption {
      type = types.bool;
      default = false;
      example = true;
      description = ''
        Whether answers are signed. `seed dns` shows the DS record that the parent zone is to have. Not together with `secondaries`: a
        copy of the zone has no signatures. ${restarts}
      '';
    };
  };
}
