//! What holds of every plan, whatever was there and wherever it was cut short: tried on a machine made of memory that refuses a step
//! which a real one should not be asked for.
#![allow(clippy::unwrap_used, reason = "that is how tests fail")]

#[path = "plan/rollout.rs"]
mod rollout;

use std::collections::{BTreeMap, BTreeSet};

use proptest::prelude::*;
use seed::{
    host::sim::{Boot, Sim},
    plan::{Step, UnitState, plan},
    render::{Layout, Target, Tools, Vmm, ingress::Map, target, vm_unit},
    spec::{
        address::{Addressing, Lease},
        desired::{Desired, Wanted},
        instance::{Instance, Port, Protocol, Rollout, Size, Volume},
        name::{InstanceId, SetId, Slot, StorePath},
        quantity::Bytes,
    },
};

fn layout() -> Layout {
    let tool = |name: &str| format!("/usr/bin/{name}");
    Layout {
        state: "/var/lib/seed".into(),
        run: "/run/seed".into(),
        units: "/run/systemd/system".into(),
        domain: "seed.example".parse().unwrap(),
        addressing: Addressing {
            pool4: "10.88.0.0/24".parse().unwrap(),
            pool6: "fd5e:ed00::/64".parse().unwrap(),
            uid_base: 800_000,
        },
        vmm: Vmm::CloudHypervisor,
        tools: Tools {
            seed: tool("seed"),
            cloud_hypervisor: tool("cloud-hypervisor"),
            qemu: tool("qemu"),
            virtiofsd: tool("virtiofsd"),
            swtpm: tool("swtpm"),
            vhost_device_vsock: tool("vhost-device-vsock"),
            journal_remote: tool("journal-remote"),
        },
        stop_timeout_secs: 90,
        boot_timeout_secs: 300,
        guest_ca: String::new(),
        log_max: Bytes(64 << 20),
        public: Vec::new(),
        ingress: None,
    }
}

fn ids() -> Vec<SetId> {
    let names = ["s-aaaaaaaaaaaa/web", "s-aaaaaaaaaaaa/web.b", "s-bbbbbbbbbbbb/web", "s-bbbbbbbbbbbb/worker"];
    names.iter().map(|name| name.parse().unwrap()).collect()
}

fn store_path(name: &str) -> StorePath {
    format!("/nix/store/0123456789abcdfghijklmnpqrsvwxyz-{name}").parse().unwrap()
}

fn instance() -> impl Strategy<Value = Instance> {
    let volume = |name: &'static str| {
        let size = prop_oneof![Just(64u64 << 20), Just(128 << 20)];
        prop::option::of(size).prop_map(move |size| size.map(|size| (name, Bytes(size))))
    };
    let kind = (0..2u8, any::<bool>(), any::<bool>(), prop::option::of(1..4u16));
    (kind, volume("data"), volume("wal")).prop_map(|((version, large, tpm, port), data, wal)| {
        let volumes = data.into_iter().chain(wal);
        let volume =
            |(name, size): (&str, Bytes)| (name.parse().unwrap(), Volume { size, mount_point: format!("/seed/storage/{name}") });
        let port = port.map(|port| ("http".parse().unwrap(), Port::new(port, Protocol::Http)));
        let toplevel = store_path(&format!("system-{version}"));
        Instance {
            closure: vec![toplevel.clone()],
            toplevel,
            kernel_params: "quiet".into(),
            size: if large { Size { vcpus: 2, memory_mib: 2048 } } else { Size { vcpus: 1, memory_mib: 512 } },
            ports: port.into_iter().collect(),
            volumes: volumes.map(volume).collect(),
            rollout: Rollout::Recreate,
            acme: false,
            shoot: false,
            tpm,
            domains: BTreeSet::new(),
        }
    })
}

fn desired() -> impl Strategy<Value = Desired> {
    let one = (prop::option::of(instance()), prop::bool::weighted(0.2));
    prop::collection::vec(one, ids().len()).prop_map(|chosen| {
        let mut desired = Desired::default();
        for ((id, lease), (one, stopped)) in ids().into_iter().zip(0..).zip(chosen) {
            let Some(instance) = one else { continue };
            if stopped {
                desired.stopped.insert(id.clone());
            }
            // Where there are both, the first serves.
            if id.slot == Slot::B && desired.instances.contains_key(&id.instance().set(Slot::A)) {
                desired.beside.insert(id.clone());
            }
            desired.instances.insert(id, Wanted { instance, lease: Lease(lease) });
        }
        desired
    })
}

/// What happens to a machine by itself.
#[derive(Debug, Clone)]
enum Event {
    KillVm(usize),
    KillHelper(usize),
    GiveUp(usize),
    StopByHand(usize),
    StartByHand(usize),
    Tick,
    Reboot,
}

fn event() -> impl Strategy<Value = Event> {
    let one = 0..ids().len();
    prop_oneof![
        one.clone().prop_map(Event::KillVm),
        one.clone().prop_map(Event::KillHelper),
        one.clone().prop_map(Event::GiveUp),
        one.clone().prop_map(Event::StopByHand),
        one.prop_map(Event::StartByHand),
        Just(Event::Tick),
        Just(Event::Reboot),
    ]
}

fn happen(sim: &Sim, event: &Event) {
    let id = |at: &usize| ids()[*at].clone();
    match event {
        Event::KillVm(at) => sim.kill_vm(id(at)),
        Event::KillHelper(at) if sim.running(id(at)).is_some() => sim.kill_helper(id(at)),
        Event::KillHelper(_) => {}
        Event::GiveUp(at) if sim.running(id(at)).is_some() => sim.give_up(id(at), "start-limit-hit"),
        Event::GiveUp(_) => {}
        Event::StopByHand(at) => sim.stop_by_hand(id(at)),
        Event::StartByHand(at) if sim.look().instances.get(&id(at)).is_some_and(|there| !there.units.is_empty()) => {
            sim.start_by_hand(id(at));
        }
        Event::StartByHand(_) => {}
        Event::Tick => sim.tick(),
        Event::Reboot => sim.reboot(),
    }
}

/// Applies the first `most` steps of the plan to `target`; every one must be possible.
fn carry_out(sim: &Sim, target: &Target, most: usize) -> Vec<Step> {
    let steps = plan(target, &sim.look());
    for step in steps.iter().take(most) {
        if let Err(error) = sim.apply_now(step) {
            panic!("{error}\n{:#?}", steps.iter().map(Step::to_string).collect::<Vec<_>>());
        }
    }
    steps
}

const ALL: usize = usize::MAX;

/// Nothing is left to do, and what is wanted runs as it is wanted.
fn assert_converged(sim: &Sim, target: &Target) {
    let left = plan(target, &sim.look());
    assert!(left.is_empty(), "{:#?}", left.iter().map(Step::to_string).collect::<Vec<_>>());
    let seen = sim.look();
    assert_eq!(seen.firewall.as_ref(), Some(&target.firewall));
    assert_eq!(seen.instances.keys().collect::<Vec<_>>(), target.instances.keys().collect::<Vec<_>>());
}

fn assert_running(sim: &Sim, target: &Target) {
    for (id, wanted) in &target.instances {
        let text = &wanted.units.last().unwrap().text;
        assert_eq!(sim.running(id).as_ref(), Some(text).filter(|_| wanted.runs), "{id}");
        for (name, size) in &wanted.volumes {
            assert!(sim.look().instances[id].volumes[name] >= *size, "{id} {name}");
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 1000, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn any_two_targets_converge_and_what_is_the_same_is_not_touched(a in desired(), b in desired()) {
        let (layout, sim) = (layout(), Sim::new());
        let (a, b) = (target(&a, &layout), target(&b, &layout));
        carry_out(&sim, &a, ALL);
        assert_converged(&sim, &a);
        assert_running(&sim, &a);
        let steps = carry_out(&sim, &b, ALL);
        assert_converged(&sim, &b);
        assert_running(&sim, &b);
        for (id, same) in a.instances.iter().filter(|(id, wanted)| b.instances.get(id) == Some(wanted)) {
            prop_assert!(steps.iter().all(|step| step.set() != Some(id)), "{id}");
            prop_assert_eq!(sim.boots(id), u32::from(same.runs));
            prop_assert!(!same.units.is_empty());
        }
    }

    #[test]
    fn plans_that_are_cut_short_anywhere_converge_all_the_same(
        passes in prop::collection::vec((desired(), 0..30usize, prop::collection::vec(event(), 0..3)), 1..6),
        last in desired(),
        boot in prop_oneof![Just(Boot::AtOnce), Just(Boot::AtTick)],
    ) {
        let (layout, sim) = (layout(), Sim::new());
        sim.boot(boot);
        let mut seen = BTreeSet::new();
        for (desired, most, events) in passes {
            carry_out(&sim, &target(&desired, &layout), most);
            events.iter().for_each(|event| happen(&sim, event));
            let (present, retired) = sim.volumes();
            seen.extend(present.iter().chain(&retired).map(|volume| volume.bytes));
        }
        let last = target(&last, &layout);
        carry_out(&sim, &last, ALL);
        sim.tick();
        // A guest whose helper died while it booted is let boot or fail first.
        carry_out(&sim, &last, ALL);
        sim.tick();
        assert_converged(&sim, &last);
        let (present, retired) = sim.volumes();
        let kept: BTreeSet<u64> = present.iter().chain(&retired).map(|volume| volume.bytes).collect();
        prop_assert!(seen.is_subset(&kept), "bytes are gone: {:?}", seen.difference(&kept));
    }

    #[test]
    fn the_steps_of_different_instances_can_be_made_in_any_order(a in desired(), b in desired(), backwards in any::<bool>()) {
        let (layout, sim) = (layout(), Sim::new());
        let (a, b) = (target(&a, &layout), target(&b, &layout));
        carry_out(&sim, &a, ALL);
        let steps = plan(&b, &sim.look());
        let (host, rest): (Vec<Step>, Vec<Step>) = steps.into_iter().partition(|step| step.set().is_none());
        let mut groups: BTreeMap<SetId, Vec<Step>> = BTreeMap::new();
        for step in rest {
            groups.entry(step.set().unwrap().clone()).or_default().push(step);
        }
        let mut groups: Vec<_> = groups.into_values().map(Vec::into_iter).collect();
        if backwards {
            groups.reverse();
        }
        host.iter().for_each(|step| sim.apply_now(step).unwrap());
        // One step of each in turn.
        while groups.iter().any(|group| group.len() > 0) {
            for step in groups.iter_mut().filter_map(Iterator::next) {
                sim.apply_now(&step).unwrap();
            }
        }
        assert_converged(&sim, &b);
        assert_running(&sim, &b);
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 300, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn names_lead_to_what_is_ready_whatever_was_cut_short(
        passes in prop::collection::vec((desired(), 0..30usize, prop::collection::vec(event(), 0..3)), 1..5),
        restarts in prop::collection::vec(any::<bool>(), 5),
        last in desired(),
        boot in prop_oneof![Just(Boot::AtOnce), Just(Boot::AtTick), Just(Boot::Hangs)],
    ) {
        let (layout, sim) = (Layout { ingress: Some(1), ..layout() }, Sim::new());
        sim.boot(boot);
        for ((desired, most, events), restart) in passes.into_iter().zip(restarts) {
            carry_out(&sim, &target(&desired, &layout), most);
            events.iter().for_each(|event| happen(&sim, event));
            if restart {
                sim.kill_ingress();
                sim.start_ingress();
            }
        }
        let last = target(&last, &layout);
        for _ in 0..3 {
            carry_out(&sim, &last, ALL);
            sim.tick();
        }
        carry_out(&sim, &last, ALL);
        assert_converged(&sim, &last);
        let seen = sim.look();
        let ready = |id: &SetId| seen.instances[id].vm == UnitState::Active;
        let names: Vec<String> = last.instances.keys().filter(|id| {
            last.ingress.as_ref().unwrap().names.values().any(|named| named == *id) && ready(id)
        }).map(|id| format!("{}.{}.seed.example plain/{}/", id.name, id.namespace, last.instances[id].address.v4)).collect();
        let text = &seen.ingress.files[&layout.run.join("ingress/http.map")];
        prop_assert_eq!(text.lines().count(), names.len());
        prop_assert!(names.iter().all(|name| text.contains(name)), "{text}");
        if let Some(running) = &seen.ingress.running {
            let mut lines: Vec<String> = running.maps[&Map::Http].iter().map(|(name, value)| format!("{name} {value}\n")).collect();
            lines.sort();
            prop_assert_eq!(&lines.concat(), text);
        }
    }
}

fn one(id: &str, change: impl FnOnce(&mut Instance)) -> Desired {
    let mut instance = Instance {
        toplevel: store_path("system"),
        kernel_params: "quiet".into(),
        closure: vec![store_path("system")],
        size: Size { vcpus: 1, memory_mib: 512 },
        ports: BTreeMap::new(),
        volumes: BTreeMap::from([("data".parse().unwrap(), Volume { size: Bytes(64 << 20), mount_point: "/data".into() })]),
        rollout: Rollout::Recreate,
        acme: false,
        shoot: false,
        tpm: false,
        domains: BTreeSet::new(),
    };
    change(&mut instance);
    Desired { instances: BTreeMap::from([(id.parse().unwrap(), Wanted { instance, lease: Lease(0) })]), ..Desired::default() }
}

const WEB: &str = "s-aaaaaaaaaaaa/web";

fn lines(target: &Target, sim: &Sim) -> Vec<String> {
    plan(target, &sim.look()).iter().map(Step::to_string).collect()
}

#[test]
fn a_plan_reads_as_people_would_say_it() {
    let (layout, sim) = (layout(), Sim::new());
    let first = target(&one(WEB, |_| ()), &layout);
    let ipv6 = first.instances[&WEB.parse().unwrap()].address.v6;
    assert_eq!(
        lines(&first, &sim),
        [
            "apply the firewall".to_owned(),
            "create the volume data of s-aaaaaaaaaaaa/web with 64Mi".into(),
            format!("make the tap seed0 for s-aaaaaaaaaaaa/web: 10.88.0.2 and {ipv6}"),
            "write the units of s-aaaaaaaaaaaa/web: seed-store, seed-journal, seed-vm".into(),
            "start s-aaaaaaaaaaaa/web".into(),
        ]
    );
    carry_out(&sim, &first, ALL);

    let changed = one(WEB, |instance| {
        instance.toplevel = store_path("system-2");
        let volume = Volume { size: Bytes(32 << 20), mount_point: "/wal".into() };
        instance.volumes = BTreeMap::from([("wal".parse().unwrap(), volume)]);
    });
    let changed = target(&changed, &layout);
    assert_eq!(
        lines(&changed, &sim),
        [
            "stop s-aaaaaaaaaaaa/web",
            "retire the volume data of s-aaaaaaaaaaaa/web: it is kept, and no longer attached",
            "create the volume wal of s-aaaaaaaaaaaa/web with 32Mi",
            "write the units of s-aaaaaaaaaaaa/web: seed-store, seed-journal, seed-vm",
            "start s-aaaaaaaaaaaa/web",
        ]
    );
    carry_out(&sim, &changed, ALL);

    let grown = one(WEB, |instance| {
        instance.toplevel = store_path("system-2");
        let volume = Volume { size: Bytes(48 << 20), mount_point: "/wal".into() };
        instance.volumes = BTreeMap::from([("wal".parse().unwrap(), volume)]);
    });
    let grow = ["stop s-aaaaaaaaaaaa/web", "grow the volume wal of s-aaaaaaaaaaaa/web to 48Mi", "start s-aaaaaaaaaaaa/web"];
    assert_eq!(lines(&target(&grown, &layout), &sim), grow);

    let gone = target(&Desired::default(), &layout);
    assert_eq!(
        lines(&gone, &sim),
        [
            "apply the firewall",
            "stop s-aaaaaaaaaaaa/web",
            "retire the volume wal of s-aaaaaaaaaaaa/web: it is kept, and no longer attached",
            "remove s-aaaaaaaaaaaa/web: 3 units and the tap seed0",
        ]
    );
}

#[test]
fn a_change_of_the_firewall_alone_touches_no_instance() {
    let (layout, sim) = (layout(), Sim::new());
    carry_out(&sim, &target(&one(WEB, |_| ()), &layout), ALL);
    let exposed = one(WEB, |instance| {
        instance.ports = BTreeMap::from([("http".parse().unwrap(), Port::new(80, Protocol::Http))]);
    });
    assert_eq!(lines(&target(&exposed, &layout), &sim), ["apply the firewall"]);
}

#[test]
fn a_person_who_stops_an_instance_is_obeyed_until_a_newer_version_comes() {
    let (layout, sim, web) = (layout(), Sim::new(), WEB.parse::<SetId>().unwrap());
    let first = target(&one(WEB, |_| ()), &layout);
    carry_out(&sim, &first, ALL);
    sim.stop_by_hand(&web);
    assert_eq!(lines(&first, &sim), [""; 0]);
    let newer = target(&one(WEB, |instance| instance.toplevel = store_path("system-2")), &layout);
    let steps = ["write the units of s-aaaaaaaaaaaa/web: seed-store, seed-journal, seed-vm", "start s-aaaaaaaaaaaa/web"];
    assert_eq!(lines(&newer, &sim), steps);
}

#[test]
fn a_start_that_was_planned_and_not_made_is_made_by_the_next_plan() {
    let (layout, sim) = (layout(), Sim::new());
    let first = target(&one(WEB, |_| ()), &layout);
    carry_out(&sim, &first, 4);
    assert_eq!(lines(&first, &sim), ["start s-aaaaaaaaaaaa/web"]);
}

#[test]
fn a_unit_file_that_belongs_to_nothing_is_removed() {
    let (layout, web) = (layout(), WEB.parse::<SetId>().unwrap());
    let sim = Sim::new();
    let first = target(&one(WEB, |_| ()), &layout);
    carry_out(&sim, &first, ALL);
    let mut seen = sim.look();
    seen.instances.get_mut(&web).unwrap().units.insert("seed-tpm@s-aaaaaaaaaaaa-web.service".into(), "old".into());
    let steps = plan(&first, &seen);
    let Some(Step::Write { remove, .. }) = steps.iter().find(|step| matches!(step, Step::Write { .. })) else {
        panic!("{steps:?}")
    };
    assert_eq!(remove, &["seed-tpm@s-aaaaaaaaaaaa-web.service"]);
}

#[test]
fn what_systemd_gave_up_is_left_alone_until_a_newer_version_comes() {
    let (layout, sim, web) = (layout(), Sim::new(), WEB.parse::<SetId>().unwrap());
    sim.boot_of(&web, Boot::Fails("timeout".into()));
    let first = target(&one(WEB, |_| ()), &layout);
    carry_out(&sim, &first, ALL);
    assert_eq!(sim.look().instances[&web].vm, UnitState::Failed);
    assert_eq!(lines(&first, &sim), [""; 0]);
    sim.boot_of(&web, Boot::AtOnce);
    let newer = target(&one(WEB, |instance| instance.toplevel = store_path("system-2")), &layout);
    assert_eq!(carry_out(&sim, &newer, ALL).first().map(Step::to_string), Some("stop s-aaaaaaaaaaaa/web".into()));
    assert_running(&sim, &newer);
}

#[test]
fn a_guest_whose_helper_died_is_killed_and_started() {
    let (layout, sim, web) = (layout(), Sim::new(), WEB.parse::<SetId>().unwrap());
    let first = target(&one(WEB, |_| ()), &layout);
    carry_out(&sim, &first, ALL);
    sim.kill_helper(&web);
    let killed = "kill s-aaaaaaaaaaaa/web: a program that it needs has died";
    assert_eq!(lines(&first, &sim), [killed, "start s-aaaaaaaaaaaa/web"]);
    carry_out(&sim, &first, ALL);
    assert_converged(&sim, &first);
    assert_eq!(sim.boots(&web), 2);
}

#[test]
fn a_machine_that_restarts_gets_everything_back_with_the_same_volumes() {
    let (layout, sim) = (layout(), Sim::new());
    let first = target(&one(WEB, |_| ()), &layout);
    carry_out(&sim, &first, ALL);
    let before = sim.volumes();
    sim.reboot();
    let said = lines(&first, &sim);
    assert!(said.contains(&"apply the firewall".to_owned()) && !said.iter().any(|line| line.contains("volume")), "{said:?}");
    carry_out(&sim, &first, ALL);
    assert_running(&sim, &first);
    assert_eq!(sim.volumes(), before);
}

#[test]
fn the_machine_made_of_memory_refuses_what_a_real_one_should_not_be_asked_for() {
    let (layout, sim, web) = (layout(), Sim::new(), WEB.parse::<SetId>().unwrap());
    let first = target(&one(WEB, |_| ()), &layout);
    carry_out(&sim, &first, ALL);
    let wanted = &first.instances[&web];
    let write = Step::Write {
        id: web.clone(),
        units: wanted.units.clone(),
        files: wanted.files.clone(),
        remove: Vec::new(),
        uid: wanted.address.uid,
    };
    assert!(sim.apply_now(&write).is_err(), "it runs");
    let other: SetId = "s-bbbbbbbbbbbb/web".parse().unwrap();
    assert!(sim.apply_now(&Step::CreateTap { id: other.clone(), address: wanted.address.clone() }).is_err(), "the tap is taken");
    assert!(sim.apply_now(&Step::Start { id: other.clone(), unit: vm_unit(&other) }).is_err(), "there are no units");
    sim.fail_apply(1);
    let stop = Step::Stop { id: web, units: Vec::new(), kill: false };
    assert!(sim.apply_now(&stop).is_ok() && sim.apply_now(&stop).is_err() && sim.apply_now(&stop).is_ok());
}
