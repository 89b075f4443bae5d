//! Volumes. They outlive everything else of an instance: none is ever deleted here, a volume that is no longer wanted is retired.

pub mod ext4;
pub mod file;

use std::{io, path::PathBuf};

use crate::spec::{
    name::{InstanceId, VolumeName},
    quantity::Bytes,
};

/// A volume that was taken from its instance and is kept.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Retired {
    pub id: InstanceId,
    pub name: VolumeName,
    pub size: Bytes,
    /// Seconds since 1970.
    pub at: u64,
    pub path: PathBuf,
}

/// Why a volume could not be made, grown or kept.
#[derive(Debug, thiserror::Error)]
pub enum VolumeError {
    #[error("could not {deed} {path}")]
    File { deed: &'static str, path: PathBuf, source: io::Error },
    #[error(
        "there is no room for {path}: it needs {needed}, and its file system has {free} left; free some, or give [storage] another directory"
    )]
    Full { path: PathBuf, needed: Bytes, free: Bytes },
    #[error("could not make a file system in {path}: {output}")]
    Format { path: PathBuf, output: String },
    #[error("{path} has {has} and cannot shrink to {wanted}")]
    Shrink { path: PathBuf, has: Bytes, wanted: Bytes },
}
