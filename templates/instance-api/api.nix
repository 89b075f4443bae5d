# An API that needs a key which nobody may see: not this repository, not the host's disk.
#
# A secret is encrypted to the TPM of the instance, so the instance comes first:
#
#   1. git push, without any secret
#   2. ssh seed.example logs api       shows `age recipient of this instance: age1…`
#   3. sops --age age1… secrets/api.yaml          and write:   api-key: the key
#   4. git add secrets, commit, git push
{
  config,
  lib,
  pkgs,
  ...
}:
let
  provisioned = builtins.pathExists ./secrets/api.yaml;

  server = pkgs.writers.writePython3 "api" { } ''
    import os
    from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

    path = os.environ.get("API_KEY_FILE")
    key = open(path).read().strip() if path else None


    class Api(BaseHTTPRequestHandler):
        def do_GET(self):
            self.send_response(200 if key else 503)
            self.end_headers()
            self.wfile.write(b"ok\n" if key else b"no key yet\n")


    ThreadingHTTPServer(("", 3000), Api).serve_forever()
  '';
in
{
  seed.expose.myapp.port = 3000;
  seed.storage.data = "1Gi";

  # Decrypted at boot, to /run/secrets/api-key.
  sops = lib.mkIf provisioned {
    defaultSopsFile = ./secrets/api.yaml;
    secrets.api-key.owner = "api";
  };

  users.users.api = {
    isSystemUser = true;
    group = "api";
  };
  users.groups.api = { };

  systemd.services.api = {
    wantedBy = [ "multi-user.target" ];
    environment = lib.mkIf provisioned { API_KEY_FILE = config.sops.secrets.api-key.path; };
    serviceConfig = {
      ExecStart = server;
      User = "api";
      Restart = "always";
    };
  };
}
