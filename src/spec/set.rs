//! The sets of units of an instance: one, and while a new version is rolled out another beside it.

use std::{fmt, str::FromStr};

use serde::{Deserialize, Serialize};

use super::name::{InstanceId, InstanceName, NameError, Namespace};

/// One of the two places that the units of an instance can have. The first has the instance's own names: an instance that is never rolled
/// out is always there.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Slot {
    #[default]
    A,
    /// Its names end in `.b`, which no instance's name can.
    B,
}

impl Slot {
    /// The one beside it.
    pub fn other(self) -> Self {
        match self {
            Self::A => Self::B,
            Self::B => Self::A,
        }
    }
}

/// One set of units on this host: `<namespace>/<name>`, or `<namespace>/<name>.b` beside it. What has an address, a tap, a user and
/// sockets is a set; what has a name, a version and an owner is an instance.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct SetId {
    pub namespace: Namespace,
    pub name: InstanceName,
    pub slot: Slot,
}

impl SetId {
    /// The instance that it is a set of.
    pub fn instance(&self) -> InstanceId {
        InstanceId { namespace: self.namespace.clone(), name: self.name.clone() }
    }

    /// What its folders are called below their namespace's: `web`, `web.b`.
    pub fn place(&self) -> String {
        match self.slot {
            Slot::A => self.name.to_string(),
            Slot::B => format!("{}.b", self.name),
        }
    }

    /// Whether it is a set of this instance.
    pub fn is_of(&self, id: &InstanceId) -> bool {
        self.namespace == id.namespace && self.name == id.name
    }

    /// The instance part of its unit names: `<namespace>-<name>`, `<namespace>-<name>.b`.
    pub fn unit_instance(&self) -> String {
        format!("{}-{}", self.namespace, self.place())
    }

    /// The inverse of [`SetId::unit_instance`].
    pub fn from_unit_instance(text: &str) -> Option<Self> {
        let (namespace, place) = text.split_at_checked(14)?;
        format!("{namespace}/{}", place.strip_prefix('-')?).parse().ok()
    }
}

impl InstanceId {
    /// Its set of units in a slot.
    pub fn set(&self, slot: Slot) -> SetId {
        SetId { namespace: self.namespace.clone(), name: self.name.clone(), slot }
    }
}

impl From<&InstanceId> for SetId {
    /// The set that has the instance's own names.
    fn from(id: &InstanceId) -> Self {
        id.set(Slot::A)
    }
}

impl From<&SetId> for SetId {
    fn from(id: &SetId) -> Self {
        id.clone()
    }
}

impl fmt::Display for SetId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.namespace, self.place())
    }
}

impl FromStr for SetId {
    type Err = NameError;
    fn from_str(text: &str) -> Result<Self, NameError> {
        let (instance, slot) = text.strip_suffix(".b").map_or((text, Slot::A), |instance| (instance, Slot::B));
        Ok(instance.parse::<InstanceId>()?.set(slot))
    }
}

impl TryFrom<String> for SetId {
    type Error = NameError;
    fn try_from(text: String) -> Result<Self, NameError> {
        text.parse()
    }
}

impl From<SetId> for String {
    fn from(id: SetId) -> String {
        id.to_string()
    }
}
