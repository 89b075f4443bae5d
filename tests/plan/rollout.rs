//! What holds of every roll-out, wherever it was cut short: what is remembered, looking and planning, as the agent strings them together.

use std::collections::BTreeSet;

use seed::{
    plan::rollout::{Seen, advance},
    spec::rollout::{Beside, Rolling, accept, serving, sets},
};

use super::*;

const DRAIN: u64 = 60;

fn version(number: u8, rollout: Rollout) -> Instance {
    let Desired { instances, .. } = one(WEB, |instance| {
        instance.toplevel = store_path(&format!("system-{number}"));
        (instance.volumes, instance.rollout) = (BTreeMap::new(), rollout);
    });
    instances.into_values().next().unwrap().instance
}

/// One instance, with all that the agent remembers of it.
struct Life {
    sim: Sim,
    layout: Layout,
    wanted: Option<Instance>,
    off: bool,
    rolling: Option<Rolling>,
    leases: BTreeMap<SetId, Lease>,
    now: u64,
}

impl Life {
    fn new(boot: Boot) -> Self {
        let sim = Sim::new();
        sim.boot(boot);
        let leases = BTreeMap::new();
        Self { sim, layout: layout(), wanted: None, off: false, rolling: None, leases, now: 1000 }
    }

    fn id() -> InstanceId {
        WEB.parse().unwrap()
    }

    fn want(&mut self, new: Option<Instance>) {
        self.rolling = new.as_ref().and_then(|new| accept(self.rolling.take(), self.wanted.as_ref(), new));
        self.wanted = new;
        self.lease();
    }

    fn lease(&mut self) {
        for (slot, _) in self.wanted.iter().flat_map(|wanted| sets(self.rolling.as_ref(), wanted)) {
            let free = (0..).map(Lease).find(|lease| !self.leases.values().any(|taken| taken == lease)).unwrap();
            self.leases.entry(Self::id().set(slot)).or_insert(free);
        }
    }

    fn target(&self) -> Target {
        let mut desired = Desired::default();
        for (slot, version) in self.wanted.iter().flat_map(|wanted| sets(self.rolling.as_ref(), wanted)) {
            let id = Self::id().set(slot);
            if self.off {
                desired.stopped.insert(id.clone());
            }
            if slot != serving(self.rolling.as_ref()) {
                desired.beside.insert(id.clone());
            }
            let wanted = Wanted { instance: version.clone(), lease: self.leases[&id] };
            desired.instances.insert(id, wanted);
        }
        assert!(desired.serving().count() <= 1, "one of them serves");
        target(&desired, &self.layout)
    }

    /// The set that serves, if it does.
    fn up(&self) -> Option<SetId> {
        let slot = serving(self.rolling.as_ref());
        let seen = Seen::of(&Self::id(), slot, &self.target(), &self.sim.look());
        seen.ready.then(|| Self::id().set(slot))
    }

    /// A pass that is cut short after so many steps. No step may touch what serves.
    fn pass(&mut self, most: usize) {
        let (observed, target) = (self.sim.look(), self.target());
        if let Some(rolling) = self.rolling.take() {
            let seen = |slot| Seen::of(&Self::id(), slot, &target, &observed);
            self.rolling = self.wanted.as_ref().and_then(|wanted| advance(rolling, wanted, self.off, seen, self.now, DRAIN));
            self.lease();
        }
        let target = self.target();
        self.leases.retain(|id, _| target.instances.contains_key(id) || observed.instances.contains_key(id));
        let up = self.up().filter(|_| !self.off);
        let steps = carry_out(&self.sim, &target, most);
        if let Some(up) = up {
            let touched: Vec<String> = steps.iter().filter(|step| step.set() == Some(&up)).map(Step::to_string).collect();
            assert!(touched.is_empty(), "what serves is touched: {touched:?}");
        }
    }

    /// Time passes, and nothing else happens any more.
    fn settle(&mut self) {
        for _ in 0..8 {
            self.pass(ALL);
            self.sim.tick();
            self.now += DRAIN;
        }
    }

    /// What is wanted serves, alone, and nothing else is left.
    fn assert_settled(&self) {
        let target = self.target();
        assert_converged(&self.sim, &target);
        let id = Self::id().set(serving(self.rolling.as_ref()));
        let Some(wanted) = &self.wanted else {
            assert!(self.sim.look().instances.is_empty() && self.leases.is_empty() && self.rolling.is_none());
            return;
        };
        assert_eq!(target.instances.keys().collect::<Vec<_>>(), [&id]);
        assert_eq!(self.leases.keys().collect::<Vec<_>>(), [&id], "no lease is left over");
        assert_eq!(sets(self.rolling.as_ref(), wanted), [(id.slot, wanted)]);
        let running = self.sim.running(&id);
        assert_eq!(running.is_some(), !self.off);
        assert!(running.is_none_or(|text| text.contains(wanted.toplevel.base_name())));
        assert!(wanted.rollout == Rollout::Rolling || id.slot == Slot::A, "what is recreated has its own names");
    }
}

#[derive(Debug, Clone)]
enum Happening {
    Want(u8, Rollout),
    Unwant,
    Off(bool),
    Pass(usize),
    Tick,
    Wait(u64),
    Kill(Slot),
    KillHelper(Slot),
    Reboot,
}

fn quiet() -> impl Strategy<Value = Happening> {
    prop_oneof![
        2 => (0..4u8).prop_map(|number| Happening::Want(number, Rollout::Rolling)),
        4 => prop_oneof![0..12usize, Just(ALL)].prop_map(Happening::Pass),
        2 => Just(Happening::Tick),
        1 => (0..=DRAIN).prop_map(Happening::Wait),
    ]
}

fn loud() -> impl Strategy<Value = Happening> {
    let slot = prop_oneof![Just(Slot::A), Just(Slot::B)];
    prop_oneof![
        6 => quiet(),
        1 => (0..4u8).prop_map(|number| Happening::Want(number, Rollout::Recreate)),
        1 => Just(Happening::Unwant),
        1 => any::<bool>().prop_map(Happening::Off),
        1 => slot.clone().prop_map(Happening::Kill),
        1 => slot.prop_map(Happening::KillHelper),
        1 => Just(Happening::Reboot),
    ]
}

fn happens(life: &mut Life, happening: &Happening) {
    match happening {
        Happening::Want(number, rollout) => life.want(Some(version(*number, *rollout))),
        Happening::Unwant => life.want(None),
        Happening::Off(off) => life.off = *off && life.wanted.is_some(),
        Happening::Pass(most) => life.pass(*most),
        Happening::Tick => life.sim.tick(),
        Happening::Wait(secs) => life.now += secs,
        Happening::Kill(slot) => life.sim.kill_vm(Life::id().set(*slot)),
        Happening::KillHelper(slot) if life.sim.running(Life::id().set(*slot)).is_some() => {
            life.sim.kill_helper(Life::id().set(*slot));
        }
        Happening::KillHelper(_) => {}
        Happening::Reboot => life.sim.reboot(),
    }
    life.off &= life.wanted.is_some();
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 200, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn whatever_happens_one_set_serves_in_the_end_and_nothing_is_left_over(
        happenings in prop::collection::vec(loud(), 0..40),
        at_once in any::<bool>(),
    ) {
        let mut life = Life::new(if at_once { Boot::AtOnce } else { Boot::AtTick });
        for happening in &happenings {
            happens(&mut life, happening);
        }
        life.settle();
        life.assert_settled();
    }

    #[test]
    fn once_something_serves_something_serves_and_what_served_drains(
        happenings in prop::collection::vec(quiet(), 0..60),
        fails in prop::collection::btree_set(0..60usize, 0..4),
    ) {
        let mut life = Life::new(Boot::AtTick);
        life.want(Some(version(0, Rollout::Rolling)));
        life.pass(ALL);
        life.sim.tick();
        prop_assert!(life.up().is_some());
        let mut served: Vec<(String, u64)> = Vec::new();
        for (at, happening) in happenings.iter().enumerate() {
            // Some of the versions never get ready.
            if let Happening::Want(number, _) = happening {
                // What is wanted again is no longer one that served before.
                served.retain(|(text, _)| !text.contains(&format!("-system-{number}/")));
            }
            life.sim.boot(if fails.contains(&at) { Boot::Fails("exit-code".into()) } else { Boot::AtTick });
            happens(&mut life, happening);
            let up = life.up();
            prop_assert!(up.is_some(), "nothing serves after {happening:?}");
            if let Some(Rolling { slot, beside: Some(Beside::Draining { until, .. }), .. }) = &life.rolling {
                let running = life.sim.running(Life::id().set(slot.other()));
                prop_assert!(running.is_some() || life.now >= *until, "it was cut off");
                served.extend(running.map(|text| (text, *until)));
            }
            // Whatever served drains to its end, or serves again.
            let runs: BTreeSet<String> = [Slot::A, Slot::B].iter().filter_map(|slot| life.sim.running(Life::id().set(*slot))).collect();
            for (text, until) in &served {
                prop_assert!(life.now >= *until || runs.contains(text));
            }
            served.retain(|(_, until)| life.now < *until);
        }
    }
}

#[test]
fn a_version_that_is_rolled_out_reads_as_people_would_say_it() {
    let mut life = Life::new(Boot::AtTick);
    life.want(Some(version(1, Rollout::Rolling)));
    life.settle();
    life.want(Some(version(2, Rollout::Rolling)));
    let said = |life: &Life| lines(&life.target(), &life.sim);
    let first = said(&life);
    assert_eq!((first[0].as_str(), first.len()), ("apply the firewall", 4));
    assert!(first[1].starts_with("make the tap seed1 for s-aaaaaaaaaaaa/web.b: 10.88.0.3 and "), "{first:?}");
    assert_eq!(
        first[2..],
        ["write the units of s-aaaaaaaaaaaa/web.b: seed-store, seed-journal, seed-vm", "start s-aaaaaaaaaaaa/web.b"]
    );
    life.pass(ALL);
    assert_eq!(said(&life), [""; 0], "it boots, and the other serves");
    life.sim.tick();
    life.pass(ALL);
    assert_eq!((life.up(), said(&life)), (Some(Life::id().set(Slot::B)), vec![]));
    assert!(life.sim.running(&Life::id()).is_some(), "it drains");
    life.now += DRAIN;
    life.pass(0);
    let last = ["apply the firewall", "stop s-aaaaaaaaaaaa/web", "remove s-aaaaaaaaaaaa/web: 3 units and the tap seed0"];
    assert_eq!(said(&life), last);
    life.settle();
    life.assert_settled();
}

#[test]
fn a_version_that_does_not_get_ready_is_removed_and_the_one_that_serves_is_not_touched() {
    let mut life = Life::new(Boot::AtOnce);
    life.want(Some(version(1, Rollout::Rolling)));
    life.settle();
    life.sim.boot(Boot::Fails("exit-code".into()));
    life.want(Some(version(2, Rollout::Rolling)));
    life.settle();
    assert_eq!(life.up(), Some(Life::id().set(Slot::A)));
    life.want(Some(version(1, Rollout::Rolling)));
    life.settle();
    life.assert_settled();
    assert_eq!((life.sim.boots(&Life::id()), &life.rolling), (1, &None));
}

#[test]
fn what_was_served_before_serves_again_at_once_while_it_drains() {
    let mut life = Life::new(Boot::AtOnce);
    life.want(Some(version(1, Rollout::Rolling)));
    life.settle();
    life.want(Some(version(2, Rollout::Rolling)));
    life.pass(ALL);
    life.pass(ALL);
    assert_eq!(life.up(), Some(Life::id().set(Slot::B)));
    life.want(Some(version(1, Rollout::Rolling)));
    life.pass(ALL);
    assert_eq!(life.up(), Some(Life::id().set(Slot::A)));
    assert_eq!(life.sim.boots(&Life::id()), 1, "it ran all the time");
    life.settle();
    life.assert_settled();
}
