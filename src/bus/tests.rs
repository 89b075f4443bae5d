//! Every document, as it was promised.

use serde_json::{Value, json, to_value};

use super::{history::*, *};

fn read<T: serde::de::DeserializeOwned>(document: &Value) -> T {
    serde_json::from_value(document.clone()).expect("readable")
}

fn the_same<T: serde::de::DeserializeOwned + Serialize>(document: Value) {
    assert_eq!(to_value(read::<T>(&document)).expect("plain"), document);
}

/// Whoever reads what `--json` prints relies on every name here. Fields may be added; a change of one raises the version.
#[test]
fn what_json_prints_is_what_was_promised() {
    let domain = json!({
        "name": "www.example.com", "namespace": "s-a", "instance": "app/web", "origin": "flake", "state": "pending", "since": 7,
        "lostAt": 0, "detail": "it is no CNAME", "next": 8, "delegated": false,
        "records": { "cname": "web.s-a.seed.example", "txtName": "_seed-challenge.www.example.com", "txt": "seed-x",
                     "acmeName": "_acme-challenge.www.example.com", "acme": "_acme-x.s-a.seed.example" },
    });
    let domains = json!({ "version": 1, "domains": [domain] });
    assert_eq!(to_value(read::<domain::DomainList>(&domains)).expect("plain"), domains);
    let instance = json!({
        "name": "web", "state": "degraded", "detail": "failed in it: nginx.service", "since": 7, "restarts": 1,
        "fqdn": "web.s-a.seed.example", "ipv4": "10.88.0.2", "ipv6": "fd5e::2", "ports": ["http 80/tcp"],
        "routes": [{ "name": "web", "addresses": ["192.0.2.7", "192.0.2.8"], "port": 8080, "protocol": "tcp", "targetPort": 80 }], "vcpus": 1,
        "memoryMib": 512, "memoryUsed": 1024, "cpuMilli": 250,
        "volumes": [{ "name": "data", "size": 67_108_864, "used": 4096, "mountPoint": "/seed/storage/data" }],
        "failedUnits": ["nginx.service"], "stoppedBy": "", "pinnedBy": "operator", "restartPending": false,
        "domains": [domain],
    });
    let status = json!({
        "version": 1,
        "namespaces": [{
            "namespace": "s-a", "flake": "silo:app", "generation": "0123456789ab", "commit": "0", "deploying": "",
            "instances": [instance], "retired": ["web/old (64Mi)"],
        }],
        "unplanted": ["other"],
    });
    assert_eq!(to_value(read::<Status>(&status)).expect("plain"), status);
    let deploys = json!({
        "version": 1,
        "namespaces": [{
            "namespace": "s-a", "flake": "silo:app", "generation": "0123456789ab", "kept": ["ba9876543210"],
            "deploys": [{
                "at": 1, "seconds": 2, "by": "operator", "kind": "rollback", "branch": "main", "commit": "0", "generation": "",
                "outcome": "failed", "stages": [{ "stage": "boot", "milliseconds": 12 }], "changes": ["web: restart"], "text": "no",
            }],
        }],
    });
    assert_eq!(to_value(read::<Deploys>(&deploys)).expect("plain"), deploys);
    for line in [
        json!({ "at": 1, "source": "console", "priority": 6, "text": "x" }),
        json!({ "at": 1, "source": "nginx", "priority": 6, "text": "x", "unit": "nginx.service", "pid": 7 }),
    ] {
        assert_eq!(to_value(read::<LogLine>(&line)).expect("plain"), line);
    }
    let progress = json!({ "at": 1, "stage": "run", "level": "info", "text": "x", "outcome": "done" });
    assert_eq!(to_value(read::<Progress>(&progress)).expect("plain"), progress);
    let pinned = json!({ "version": 1, "instance": "app/web", "pinned": true, "changed": false });
    assert_eq!(to_value(read::<Pinned>(&pinned)).expect("plain"), pinned);
    the_same::<access::RepositoryList>(json!({
        "version": 1,
        "repositories": [{ "name": "app", "standing": "owner", "visibility": "public", "owner": "SHA256:x", "access": ["SHA256:y deploy"],
                           "created": 7, "namespace": "s-a" }],
    }));
    let quota = json!({ "instances": 8, "vcpus": 8, "memory": 8_589_934_592_u64, "volumes": 34_359_738_368_u64,
                        "repository": 1_073_741_824, "builds": 2, "logs": 1_073_741_824,
                        "routes": 0 });
    let used = json!({ "instances": 1, "vcpus": 1, "memory": 536_870_912, "volumes": 67_108_864, "logs": 1024, "repository": 4096,
                       "builds": 0, "routes": 0 });
    the_same::<shell::QuotaList>(json!({
        "version": 1,
        "namespaces": [{ "namespace": "s-a", "repository": "app", "own": false, "quota": quota, "used": used }],
    }));
    the_same::<access::AuditTrail>(json!({
        "version": 1,
        "entries": [{ "number": 1, "at": 7, "who": "operator", "source": "", "verb": "push", "arguments": ["app"], "repository": "app",
                      "result": "ok: 1-2" }],
    }));
    the_same::<Planted>(
        json!({ "version": 1, "namespace": "s-a", "flake": "silo:app", "job": "1-2", "suffix": "s-a.seed.example" }),
    );
    let webhook = json!({ "version": 1, "url": "https://seed.example/webhook/github", "secret": "00" });
    the_same::<github::Webhook>(webhook.clone());
    the_same::<github::RemotePlanted>(json!({
        "version": 1, "namespace": "s-a", "flake": "github:ann/app", "job": "1-2", "suffix": "s-a.seed.example", "webhook": webhook,
    }));
    the_same::<github::RemoteKey>(json!({ "version": 1, "flake": "github:ann/app", "key": "ssh-ed25519 AAAA", "made": true }));
    the_same::<github::RemoteStatus>(json!({
        "version": 1, "namespace": "s-a", "flake": "github:ann/app", "branch": "main", "commit": "0", "token": false, "key": "",
        "hostKey": "", "webhookUrl": "https://seed.example/webhook/github", "fetched": 7, "problem": "", "every": 600,
    }));
    the_same::<shell::Whoami>(json!({ "version": 1, "key": "SHA256:x", "source": "192.0.2.1" }));
    the_same::<shell::Whoami>(json!({ "version": 1, "key": "operator", "source": null }));
    let verb = json!({ "name": "stop", "usage": "stop [REPO/]INSTANCE", "short": "power off", "long": "" });
    the_same::<shell::VerbList>(json!({ "version": 1, "verbs": [verb] }));
    the_same::<shell::StepList>(json!({ "version": 1, "steps": ["write s-a/web"] }));
    the_same::<shell::QuotaSet>(json!({ "version": 1, "quota": "memory=8Gi" }));
    the_same::<shell::NewInvite>(json!({ "version": 1, "code": "abc", "usesLeft": 1, "expires": 0 }));
    the_same::<shell::InviteList>(json!({
        "version": 1,
        "invites": [{ "id": "abc", "state": "used", "usesLeft": 0, "expires": 0, "note": "ann", "created": 7, "revoked": 0,
                      "used": [{ "key": "SHA256:x", "source": "192.0.2.1", "flake": "silo:app", "at": 8 },
                               { "key": null, "source": null, "flake": "silo:b", "at": 9 }] }],
    }));
    the_same::<shell::InviteRevoked>(json!({ "version": 1, "revoked": "abc" }));
    the_same::<shell::VisibilitySet>(json!({ "version": 1, "visibility": "private" }));
    the_same::<shell::Renamed>(json!({ "version": 1, "name": "our-app" }));
    the_same::<shell::Deleted>(json!({ "version": 1, "deleted": "app" }));
    the_same::<shell::DomainRemoved>(json!({ "version": 1, "removed": "www.example.com" }));
    the_same::<shell::Done>(json!({ "version": 1, "done": "it is trusted" }));
    the_same::<shell::AuditChecked>(json!({ "version": 1, "entries": 3, "first": 1, "since": 7, "hash": "00" }));
    the_same::<shell::Copied>(json!({ "version": 1, "files": 1, "bytes": 7, "leftOut": ["/run/x"] }));
    the_same::<shell::Forwarding>(json!({ "version": 1, "address": "127.0.0.1:8080", "instance": "web", "port": 80 }));
    the_same::<shell::Failure>(json!({ "version": 1, "error": { "kind": "notFound", "text": "there is no web" } }));
    let unplanted = json!({ "version": 1, "namespace": "s-a", "flake": "silo:app", "job": "1-2", "kept": ["x"] });
    assert_eq!(to_value(read::<Unplanted>(&unplanted)).expect("plain"), unplanted);
}
