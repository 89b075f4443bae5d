# The back. `web` reaches it as api:3000.
{ pkgs, ... }:
let
  server = pkgs.writers.writePython3 "api" { } ''
    from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer


    class Api(BaseHTTPRequestHandler):
        def do_GET(self):
            self.send_response(200)
            self.send_header("Content-Type", "application/json")
            self.end_headers()
            self.wfile.write(b'{"status": "ok"}\n')


    ThreadingHTTPServer(("", 3000), Api).serve_forever()
  '';
in
{
  seed.expose.myapi.port = 3000;

  systemd.services.api = {
    wantedBy = [ "multi-user.target" ];
    serviceConfig = {
      ExecStart = server;
      DynamicUser = true;
      Restart = "always";
    };
  };
}
