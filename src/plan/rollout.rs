//! What becomes of a roll-out: a function of what is remembered of it, what is wanted, and what was seen. Asked again at every look, so
//! that one which was cut short anywhere goes on from what is there.

use super::{Observed, ObservedInstance, Tap, UnitState, is_written};
use crate::{
    render::{InstanceTarget, Target},
    spec::{
        instance::Instance,
        name::{InstanceId, Slot},
        rollout::{Beside, Rolling},
    },
};

/// What was seen of one set.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Seen {
    /// Anything at all.
    pub there: bool,
    /// Its guest is up, and all that it needs.
    pub up: bool,
    /// It is up with just the units that it is to have.
    pub ready: bool,
}

impl Seen {
    /// What was seen of a set of an instance.
    pub fn of(id: &InstanceId, slot: Slot, target: &Target, observed: &Observed) -> Self {
        let id = id.set(slot);
        let Some(there) = observed.instances.get(&id) else { return Self::default() };
        let up = there.vm == UnitState::Active && !there.helper_failed;
        Self { there: true, up, ready: up && target.instances.get(&id).is_some_and(|wanted| fits(wanted, there)) }
    }
}

/// Whether what is there is what is wanted. What was written is what was started since: units are written only while nothing runs.
fn fits(wanted: &InstanceTarget, there: &ObservedInstance) -> bool {
    is_written(wanted, there) && there.started && there.tap.as_ref() == Some(&Tap::of(&wanted.address))
}

/// What is to be remembered next. `off`: somebody has stopped the instance. `now` and `drain` are seconds.
pub fn advance(
    rolling: Rolling,
    wanted: &Instance,
    off: bool,
    seen: impl Fn(Slot) -> Seen,
    now: u64,
    drain: u64,
) -> Option<Rolling> {
    let Rolling { slot, serves, beside } = rolling;
    let there = seen(slot.other());
    // Nothing runs, so there is nothing to start beside.
    if off {
        return Rolling { slot, serves: wanted.clone(), beside: None }.settled(wanted);
    }
    let next = match beside {
        Some(Beside::Coming { version }) if there.ready => {
            // Who is connected to what does not run is so no more.
            let drains = seen(slot).up;
            let beside = drains.then(|| Beside::Draining { version: serves, until: now.saturating_add(drain) });
            Rolling { slot: slot.other(), serves: version, beside }
        }
        Some(Beside::Draining { until, .. }) if now >= until || !there.up => Rolling { slot, serves, beside: None },
        // The clock was set back meanwhile.
        Some(Beside::Draining { version, until }) => {
            let beside = Some(Beside::Draining { version, until: until.min(now.saturating_add(drain)) });
            Rolling { slot, serves, beside }
        }
        // A newer version has waited until the place was free.
        None if !serves.runs_like(wanted) && !there.there => {
            Rolling { slot, serves, beside: Some(Beside::Coming { version: wanted.clone() }) }
        }
        beside => Rolling { slot, serves, beside },
    };
    next.settled(wanted)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::spec::rollout::tests::version;

    const GONE: Seen = Seen { there: false, up: false, ready: false };
    const BOOTS: Seen = Seen { there: true, up: false, ready: false };
    const OLD: Seen = Seen { there: true, up: true, ready: false };
    const READY: Seen = Seen { there: true, up: true, ready: true };

    /// What becomes of it at second 100, with 60 to drain: A was seen as `a`, B as `b`.
    fn next(rolling: &Rolling, wanted: u32, a: Seen, b: Seen) -> Option<Rolling> {
        let seen = |slot| if slot == Slot::A { a } else { b };
        advance(rolling.clone(), &version(wanted), false, seen, 100, 60)
    }

    fn rolling(slot: Slot, serves: u32, beside: Option<Beside>) -> Rolling {
        Rolling { slot, serves: version(serves), beside }
    }

    #[test]
    fn the_new_one_serves_when_it_is_ready_and_not_before() {
        let coming = rolling(Slot::A, 1, Some(Beside::Coming { version: version(2) }));
        for there in [GONE, BOOTS, OLD] {
            assert_eq!(next(&coming, 2, READY, there), Some(coming.clone()), "{there:?}");
        }
        let drains = rolling(Slot::B, 2, Some(Beside::Draining { version: version(1), until: 160 }));
        assert_eq!(next(&coming, 2, READY, READY), Some(drains));
        assert_eq!(next(&coming, 2, BOOTS, READY), Some(rolling(Slot::B, 2, None)), "there is nothing to drain");
    }

    #[test]
    fn the_old_one_drains_as_long_as_it_may_and_as_it_runs() {
        let drains = |until| rolling(Slot::B, 2, Some(Beside::Draining { version: version(1), until }));
        assert_eq!(next(&drains(101), 2, READY, READY), Some(drains(101)));
        assert_eq!(next(&drains(100), 2, READY, READY), Some(rolling(Slot::B, 2, None)));
        assert_eq!(next(&drains(150), 2, BOOTS, READY), Some(rolling(Slot::B, 2, None)));
        assert_eq!(next(&drains(150), 2, GONE, READY), Some(rolling(Slot::B, 2, None)), "not after the machine restarted either");
        assert_eq!(next(&drains(9999), 2, READY, READY), Some(drains(160)), "the clock was set back");
    }

    #[test]
    fn a_newer_one_comes_when_there_is_a_place() {
        let served = rolling(Slot::B, 2, None);
        assert_eq!(next(&served, 3, BOOTS, READY), Some(served.clone()));
        let coming = rolling(Slot::B, 2, Some(Beside::Coming { version: version(3) }));
        assert_eq!(next(&served, 3, GONE, READY), Some(coming));
        assert_eq!(next(&served, 2, GONE, READY), Some(served));
    }

    #[test]
    fn what_is_off_changes_in_its_place() {
        let coming = rolling(Slot::B, 1, Some(Beside::Coming { version: version(2) }));
        let off = advance(coming, &version(2), true, |_| READY, 100, 60);
        assert_eq!(off, Some(rolling(Slot::B, 2, None)));
        let coming = rolling(Slot::A, 1, Some(Beside::Coming { version: version(2) }));
        assert_eq!(advance(coming, &version(2), true, |_| READY, 100, 60), None);
    }
}
