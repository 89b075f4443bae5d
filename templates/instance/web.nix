# A static site. Put pages into /seed/storage/data/www.
{
  seed.size = "xs"; #                   1 CPU, 512 MiB; then s, m, l, xl
  seed.expose.http.enable = true; #     port 80, open to the world
  seed.storage.data = "1Gi"; #          /seed/storage/data, which outlives restarts and new versions

  services.nginx.enable = true;
  services.nginx.virtualHosts.default = {
    listen = [
      {
        addr = "0.0.0.0";
        port = 80;
      }
    ];
    root = "/seed/storage/data/www";
  };

  # The volume is empty at first: a page to begin with.
  systemd.tmpfiles.rules = [
    "d /seed/storage/data/www 0755 root root -"
    "f /seed/storage/data/www/index.html 0644 root root - Hello from Seed"
  ];
}
