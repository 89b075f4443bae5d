//! The unit set of one instance.
use super::{InstanceTarget, Layout};
use crate::spec::{desired::Wanted, name::InstanceId};
pub fn instance(_id: &InstanceId, _wanted: &Wanted, _layout: &Layout) -> InstanceTarget {
    todo!()
}
