# The manifest as a function of plain values: what is wrong is said, each time with the option, what was given and what to write.
{ project, ... }:
let
  manifest = settings: import (project + "/nixos-modules/instance/manifest.nix") ({ name = "web"; } // settings);
  said = settings: expected: {
    expr = (manifest settings).problems;
    inherit expected;
  };
  volume = size: { data.size = size; };
  mounted = mountPoint: {
    storage.data = {
      size = "1Gi";
      inherit mountPoint;
    };
  };
  services = builtins.concatStringsSep ", " (
    builtins.attrNames (builtins.fromJSON (builtins.readFile (project + "/vmconfigs/services.json")))
  );
  place = "write another place, as /seed/storage/data or /var/lib/app";
  noSize = given: "seed.storage.data.size: \"${given}\" is no size: write a whole number and one of Ki, Mi, Gi, Ti (as in 500Mi or 1Gi)";
  outOfRange = given: "seed.storage.data.size: \"${given}\" is out of range: write 8Mi to 16Ti";
  noPath =
    given:
    "seed.storage.data.mountPoint: \"${given}\" is no absolute path of letters, digits and . _ - + @ without '.', '..' or doubled slashes: write one, as /seed/storage/data";
  label = "write lower-case letters, digits and hyphens, with no hyphen at either end (as in my-app)";
  domain = "write labels of lower-case letters, digits and hyphens with dots between them, as in www.example.com";
in
{
  "nothing is wrong with nothing" = said { } [ ];

  # --- names
  "a name with capitals and underscores" =
    said { name = "Web_1"; }
      [ "mkSeed: name: \"Web_1\" is no DNS label: ${label}" ];
  "a name that ends with a hyphen" = said { name = "web-"; } [ "mkSeed: name: \"web-\" is no DNS label: ${label}" ];
  "no name" = said { name = ""; } [ "mkSeed: name: the empty name is no DNS label: write lower-case letters, digits and hyphens" ];
  "a long name" = said { name = "a123456789b123456789c123456789d123456789e"; } [
    "mkSeed: name: \"a123456789b123456789c123456789d123456789e\" is longer than 40 characters: write a shorter name"
  ];
  "the name of a port" = said { expose."my app".port = 1; } [ "seed.expose: \"my app\" is no DNS label: ${label}" ];
  "the name of a volume" = said { storage."my.data".size = "1Gi"; } [ "seed.storage: \"my.data\" is no DNS label: ${label}" ];
  "the name of a volume that no serial number holds" = said { storage.a12345678901234567890.size = "1Gi"; } [
    "seed.storage: \"a12345678901234567890\" is longer than 20 characters, which is all that a virtio disk's serial number holds: write a shorter name"
  ];

  # --- size
  "an unknown size" = said { size = "xxl"; } [ "seed.size: \"xxl\" is no size: write one of xs, s, m, l, xl" ];

  # --- names of one's own
  "names of one's own" = said {
    domains = [
      "www.example.com"
      "example.com"
      "xn--mnchen-3ya.example"
    ];
  } [ ];
  "what is no name of anybody's" =
    said
      {
        domains = [
          "münchen.example"
          "192.0.2.1"
          "2001:db8::1"
          ""
          "*.example.com"
          "www.example.com."
          "localhost"
          "WWW.example.com"
          "a..b"
          "-a.example.com"
          "a.example.com"
          "a.example.com"
        ];
      }
      [
        "seed.domains: \"münchen.example\" has letters that DNS has not: write it in punycode, as in xn--mnchen-3ya.example"
        "seed.domains: \"192.0.2.1\" is an address or nothing: write a name, as in www.example.com"
        "seed.domains: \"2001:db8::1\" is an address or nothing: write a name, as in www.example.com"
        "seed.domains: \"\" is an address or nothing: write a name, as in www.example.com"
        "seed.domains: \"*.example.com\" is a wildcard: write each name that there is to be"
        "seed.domains: \"www.example.com.\" ends with a dot: write it without"
        "seed.domains: \"localhost\" has one label only: write the whole name, as in www.example.com"
        "seed.domains: \"WWW.example.com\" is no name in the DNS: ${domain}"
        "seed.domains: \"a..b\" is no name in the DNS: ${domain}"
        "seed.domains: \"-a.example.com\" is no name in the DNS: ${domain}"
        "seed.domains: \"a.example.com\" stands there twice: remove one of the two"
      ];

  "more names than are proven" =
    said { domains = builtins.genList (one: "a${toString one}.example.com") 17; }
      [ "seed.domains: has 17 entries: write at most 16" ];
  "a name for which no certificate can be had" =
    let
      long = builtins.concatStringsSep "." (builtins.genList (_: "abcdefghi") 24);
    in
    said { domains = [ "${long}" ]; } [ "seed.domains: \"${long}\" is longer than 237 characters: write a shorter name" ];

  # --- ports
  "port 0" = said { expose.game.port = 0; } [ "seed.expose.game.port: 0 is no port: write a number from 1 to 65535" ];
  "port 70000" = said { expose.game.port = 70000; } [ "seed.expose.game.port: 70000 is no port: write a number from 1 to 65535" ];
  "a negative port" = said { expose.game.port = -1; } [ "seed.expose.game.port: -1 is no port: write a number from 1 to 65535" ];
  "an unknown name without a port" = said { expose.game = { }; } [
    "seed.expose.game: \"game\" is no well-known service, and no port was given: write seed.expose.game = { port = 9090; protocol = \"tcp\"; }, or use one of the known names: ${services}"
  ];
  "the PROXY protocol over UDP" =
    said
      {
        expose.game = {
          port = 27015;
          protocol = "udp";
          proxyProtocol = true;
        };
      }
      [ "seed.expose.game.proxyProtocol: is for ports with TCP, and this one has none: leave it out" ];
  "the PROXY protocol is passed on" = {
    expr =
      (manifest {
        expose = {
          https.proxyProtocol = true;
          http = { };
        };
      }).meta.expose;
    expected = {
      https = {
        port = 443;
        protocol = "http";
        proxyProtocol = true;
      };
      http = {
        port = 80;
        protocol = "tcp";
      };
    };
  };
  "an unknown protocol" = said { expose.http.protocol = "https"; } [
    "seed.expose.http.protocol: \"https\" is no protocol: write one of tcp, udp, dns, http, grpc"
  ];
  "one port twice" =
    said
      {
        expose.a.port = 80;
        expose.http = { };
      }
      [ "seed.expose.http: port 80 is exposed as seed.expose.a already: write another port, or remove one of the two" ];
  "dns takes both transports" =
    said
      {
        expose.a = {
          port = 53;
          protocol = "udp";
        };
        expose.dns = { };
      }
      [ "seed.expose.dns: port 53 is exposed as seed.expose.a already: write another port, or remove one of the two" ];
  "one port for tcp and another for udp" = said {
    expose.a = {
      port = 443;
      protocol = "udp";
    };
    expose.https = { };
  } [ ];
  "more ports than a host leads" =
    said
      {
        expose = builtins.listToAttrs (
          builtins.genList (one: {
            name = "a${toString one}";
            value.port = 1000 + one;
          }) 129
        );
      }
      [ "seed.expose: has 129 entries: write at most 128" ];
  "what is closed clashes with nothing" = said {
    expose.a.port = 80;
    expose.http.enable = false;
  } [ ];

  # --- volumes
  "a size without a unit" = said { storage = volume "10"; } [ (noSize "10") ];
  "a negative size" = said { storage = volume "-1Gi"; } [ (noSize "-1Gi") ];
  "a fraction" = said { storage = volume "1.5Gi"; } [ (noSize "1.5Gi") ];
  "a unit of another system" = said { storage = volume "1GB"; } [ (noSize "1GB") ];
  "no room at all" = said { storage = volume "0Mi"; } [ (outOfRange "0Mi") ];
  "less than a file system needs" = said { storage = volume "8191Ki"; } [ (outOfRange "8191Ki") ];
  "more than there is" = said { storage = volume "17Ti"; } [ (outOfRange "17Ti") ];
  "more than a number holds" = said { storage = volume "99999999999999999999Ti"; } [ (outOfRange "99999999999999999999Ti") ];
  "the least, the most, leading zeros and decimal units" = {
    expr = builtins.concatMap (size: (manifest { storage = volume size; }).problems) [
      "8Mi"
      "8192Ki"
      "16Ti"
      "16384Gi"
      "017Mi"
      "9M"
      "17592186044k"
    ];
    expected = [ ];
  };
  "a volume at the root" = said (mounted "/") [
    "seed.storage.data.mountPoint: \"/\" is the root of the system, which lives in memory: ${place}"
  ];
  "a volume below /nix" = said (mounted "/nix/store") [
    "seed.storage.data.mountPoint: \"/nix/store\" would hide /nix: ${place}"
  ];
  "a volume above /seed/tpm" = said (mounted "/seed") [ "seed.storage.data.mountPoint: \"/seed\" would hide /seed/tpm: ${place}" ];
  "a relative mount point" = said (mounted "data") [ (noPath "data") ];
  "a mount point that goes up" = said (mounted "/a/../nix") [ (noPath "/a/../nix") ];
  "a mount point with a doubled slash" = said (mounted "/a//b") [ (noPath "/a//b") ];
  "a mount point with a slash at its end" = said (mounted "/a/") [ (noPath "/a/") ];
  "a mount point with a blank" = said (mounted "/my data") [ (noPath "/my data") ];
  "mount points in which a dot is no step" = {
    expr = builtins.concatMap (path: (manifest (mounted path)).problems) [
      "/nixos"
      "/a/.cache"
      "/a..b/..c"
      "/tmp/cache"
    ];
    expected = [ ];
  };
  "two volumes at one place" =
    said
      {
        storage = volume "1Gi" // {
          more = {
            size = "1Gi";
            mountPoint = "/seed/storage/data";
          };
        };
      }
      [
        "seed.storage.more.mountPoint: \"/seed/storage/data\" collides with \"/seed/storage/data\" of seed.storage.data: write a path that is neither the same nor below it"
      ];
  "a volume in a volume" =
    said
      {
        storage = volume "1Gi" // {
          more = {
            size = "1Gi";
            mountPoint = "/seed/storage/data/more";
          };
        };
      }
      [
        "seed.storage.more.mountPoint: \"/seed/storage/data/more\" collides with \"/seed/storage/data\" of seed.storage.data: write a path that is neither the same nor below it"
      ];
  "more volumes than a machine has" =
    said
      {
        storage = builtins.listToAttrs (
          builtins.genList (one: {
            name = "a${toString one}";
            value.size = "8Mi";
          }) 17
        );
      }
      [ "seed.storage: has 17 entries: write at most 16" ];
  "a mode, a user and a group that are none" =
    said
      {
        storage.data = {
          size = "1Gi";
          mode = "rwx";
          user = "app";
          group = "app";
        };
        users = [ "root" ];
        groups = [ "root" ];
      }
      [
        "seed.storage.data.mode: \"rwx\" is no file mode: write three or four octal digits, as 0750"
        "seed.storage.data.user: there is no user \"app\": declare it as users.users.app, or write one that a service declares"
        "seed.storage.data.group: there is no group \"app\": declare it as users.groups.app, or write one that a service declares"
      ];

  # --- the rest
  "a neighbour who cannot be" =
    said
      {
        connect.db = {
          service = "My DB";
          port = 0;
        };
        connect."1st" = {
          service = "db";
          port = null;
        };
      }
      [
        "seed.connect: \"1st\" makes no name of an environment variable: write letters, digits, hyphens and underscores, beginning with a letter"
        "seed.connect.db.service: \"My DB\" is no name of an instance: write the name of another instance of this flake, as in seeds.<name>"
        "seed.connect.db.port: 0 is no port: write a number from 1 to 65535"
      ];
  "an unknown rollout" = said { rollout = "canary"; } [
    "seed.rollout: \"canary\" is no way to roll out: write \"recreate\" or \"rolling\""
  ];
  "rolling with a volume" =
    said
      {
        rollout = "rolling";
        storage = volume "1Gi";
      }
      [
        "seed.rollout: \"rolling\" runs the old and the new version side by side, and two machines cannot mount one volume (seed.storage.data): write \"recreate\", or remove the volumes"
      ];
  "rolling without a volume" = said { rollout = "rolling"; } [ ];
  "rolling without a TPM, which need not be said" = {
    expr = map (settings: (manifest settings).meta.tpm) [
      { rollout = "rolling"; }
      { }
    ];
    expected = [
      false
      true
    ];
  };
  "rolling with a TPM" =
    said
      {
        rollout = "rolling";
        tpm = true;
      }
      [
        "seed.rollout: \"rolling\" runs the old and the new version side by side, and two machines cannot have one TPM: write \"recreate\", or seed.tpm.enable = false"
      ];
  "rolling with secrets" =
    said
      {
        rollout = "rolling";
        sops = true;
      }
      [
        "seed.rollout: \"rolling\" runs the old and the new version side by side without a TPM, and the secrets of sops are encrypted to the key in it: write \"recreate\", or remove sops.secrets"
      ];
  "secrets without a TPM" =
    said
      {
        tpm = false;
        sops = true;
      }
      [
        "seed.tpm.enable: false was given, but the secrets of sops are encrypted to the key in the TPM: write true, or remove sops.secrets"
      ];

  # --- what it comes to
  "certificates follow the protocols" = {
    expr = map (settings: (manifest settings).meta.acme) [
      { expose.http = { }; }
      { expose.https = { }; }
      { expose.grpc.port = 9090; }
      { expose.https.enable = false; }
      {
        expose.https = { };
        acme = false;
      }
      { acme = true; }
    ];
    expected = [
      false
      true
      true
      false
      false
      true
    ];
  };
}
