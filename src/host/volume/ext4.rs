//! How full the ext4 file system of a volume is, as `df` in the guest says it, read from the image beside the running guest: a handful of
//! fixed fields of the superblock, and of each block group how much is free.
//!
//! The superblock has a count of its own, but a kernel writes that only now and then; those of the groups reach the disk within about half
//! a minute. Nothing is mounted and no program is started, for what is read is a tenant's: every number is checked, the amount is bounded,
//! and whatever is not plain ext4 is simply not known.

use std::{
    fs::{File, OpenOptions},
    os::unix::fs::{FileExt, OpenOptionsExt},
    path::Path,
};

/// The superblock is so long and so far from the beginning.
const SUPERBLOCK: usize = 1024;
/// 8 TiB of blocks of 4 KiB; the descriptors of as many are 4 MiB.
const MAX_GROUPS: u64 = 65_536;

const META_BG: u32 = 0x10;
const BITS_64: u32 = 0x80;
const BIGALLOC: u32 = 0x200;

fn u16_at(bytes: &[u8], at: usize) -> Option<u64> {
    Some(u16::from_le_bytes(bytes.get(at..at + 2)?.try_into().ok()?).into())
}

fn u32_at(bytes: &[u8], at: usize) -> Option<u64> {
    Some(u32::from_le_bytes(bytes.get(at..at + 4)?.try_into().ok()?).into())
}

/// What the superblock says of the size of things.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Shape {
    block: u64,
    blocks: u64,
    /// Blocks that files never get.
    overhead: u64,
    groups: u64,
    descriptor: u64,
    /// The block that the descriptors begin with.
    first: u64,
}

impl Shape {
    fn read(superblock: &[u8], image: u64) -> Option<Self> {
        let (half, word) = (|at| u16_at(superblock, at), |at| u32_at(superblock, at));
        let (log_block, incompatible, read_only) = (word(24)?, word(96)? as u32, word(100)? as u32);
        if half(56)? != 0xEF53 || log_block > 6 || incompatible & META_BG != 0 || read_only & BIGALLOC != 0 {
            return None;
        }
        let block = 1024u64 << log_block;
        let wide = incompatible & BITS_64 != 0;
        let blocks = word(4)? | if wide { word(336)? << 32 } else { 0 };
        let (data, per_group) = (word(20)?, word(32)?);
        let descriptor = if wide { half(254)? } else { 32 };
        let fits = blocks.checked_mul(block)? <= image && data < blocks && data <= 1;
        if !fits || !(1..=8 * block).contains(&per_group) || !matches!(descriptor, 32 | 64) {
            return None;
        }
        let groups = (blocks - data).div_ceil(per_group);
        let overhead = Some(word(584)?).filter(|overhead| *overhead < blocks)?;
        (groups <= MAX_GROUPS).then_some(Self { block, blocks, overhead, groups, descriptor, first: data + 1 })
    }

    /// Free blocks of all groups.
    fn free(self, descriptors: &[u8]) -> Option<u64> {
        let size = usize::try_from(self.descriptor).ok()?;
        descriptors.chunks_exact(size).try_fold(0u64, |sum, one| {
            let high = if size >= 64 { u16_at(one, 44)? } else { 0 };
            sum.checked_add(u16_at(one, 12)? | high << 16)
        })
    }
}

/// Bytes that files take in the file system at `image`; `None` if that cannot be told.
pub fn used(image: &Path) -> Option<u64> {
    let flags = libc::O_NOFOLLOW | libc::O_NONBLOCK;
    let file = OpenOptions::new().read(true).custom_flags(flags).open(image).ok()?;
    let metadata = file.metadata().ok().filter(std::fs::Metadata::is_file)?;
    let superblock = part(&file, SUPERBLOCK as u64, SUPERBLOCK)?;
    let shape = Shape::read(&superblock, metadata.len())?;
    let length = usize::try_from(shape.groups * shape.descriptor).ok()?;
    let free = shape.free(&part(&file, shape.first * shape.block, length)?)?;
    let used = shape.blocks.checked_sub(shape.overhead)?.checked_sub(free)?;
    Some(used * shape.block)
}

fn part(file: &File, at: u64, length: usize) -> Option<Vec<u8>> {
    let mut bytes = vec![0; length];
    file.read_exact_at(&mut bytes, at).ok()?;
    Some(bytes)
}

#[cfg(test)]
mod tests {
    use std::{fs, process::Command};

    use proptest::prelude::*;

    use super::*;

    /// An image of `mib`, made with these options, with a file of 3 MiB in it.
    fn image(folder: &Path, mib: u64, options: &[&str]) -> std::path::PathBuf {
        let (image, tree) = (folder.join(format!("{}.img", options.concat().replace(['/', '^'], ""))), folder.join("tree"));
        fs::create_dir_all(&tree).unwrap();
        fs::write(tree.join("file"), vec![7; 3 << 20]).unwrap();
        File::create(&image).unwrap().set_len(mib << 20).unwrap();
        let made = Command::new("mkfs.ext4").args(["-q", "-F", "-d"]).arg(&tree).args(options).arg(&image).output().unwrap();
        assert!(made.status.success(), "{}", String::from_utf8_lossy(&made.stderr));
        image
    }

    /// What e2fsprogs count: blocks less those that are free and those that files never get, in bytes.
    fn counted(image: &Path) -> u64 {
        let out = Command::new("dumpe2fs").arg("-h").arg(image).output().unwrap();
        let text = String::from_utf8_lossy(&out.stdout).into_owned();
        let of = |name: &str| -> u64 {
            let value = text.lines().find_map(|line| line.strip_prefix(name)).unwrap_or_else(|| panic!("no {name} in {text}"));
            value.trim().parse().unwrap()
        };
        (of("Block count:") - of("Overhead clusters:") - of("Free blocks:")) * of("Block size:")
    }

    #[test]
    fn what_files_take_is_what_e2fsprogs_count() {
        let dir = tempfile::tempdir().unwrap();
        let table: [(u64, &[&str]); 5] = [(16, &[]), (64, &["-m0"]), (600, &["-b4096"]), (300, &["-b1024"]), (64, &["-O^64bit"])];
        for (mib, options) in table {
            let image = image(dir.path(), mib, options);
            let found = used(&image).unwrap();
            assert_eq!(found, counted(&image), "{options:?}");
            assert!((3 << 20..4 << 20).contains(&found), "{options:?}: {found}");
        }
    }

    #[test]
    fn what_is_no_plain_file_system_is_not_known() {
        let dir = tempfile::tempdir().unwrap();
        let good = image(dir.path(), 16, &[]);
        let bytes = fs::read(&good).unwrap();
        let bad = dir.path().join("bad.img");
        let put = |at: usize, value: &[u8]| {
            let mut bytes = bytes.clone();
            bytes[SUPERBLOCK + at..SUPERBLOCK + at + value.len()].copy_from_slice(value);
            fs::write(&bad, bytes).unwrap();
            used(&bad)
        };
        let table: [(usize, &[u8]); 9] = [
            (56, &[0, 0]),
            (24, &[7, 0, 0, 0]),
            // More blocks than the image has room for.
            (4, &[255; 4]),
            (32, &[0; 4]),
            (32, &[1, 0, 0, 0]),
            (254, &[8, 0]),
            (254, &[255, 255]),
            (584, &[255; 4]),
            (96, &[0xd2, 2, 0, 0]),
        ];
        for (at, value) in table {
            assert_eq!(put(at, value), None, "{at} {value:?}");
        }
        fs::write(&bad, &bytes[..1500]).unwrap();
        assert_eq!(used(&bad), None);
        let link = dir.path().join("link.img");
        std::os::unix::fs::symlink(&good, &link).unwrap();
        assert_eq!((used(&link), used(dir.path()), used(&dir.path().join("none"))), (None, None, None));
        assert!(Command::new("mkfifo").arg(dir.path().join("fifo")).status().unwrap().success());
        assert_eq!(used(&dir.path().join("fifo")), None);
    }

    proptest! {
        #[test]
        fn whatever_stands_there_is_no_more_than_the_image(bytes in proptest::collection::vec(any::<u8>(), 1024), magic in any::<bool>(), group in any::<[u8; 64]>()) {
            let mut bytes = bytes;
            if magic {
                // Close enough to get further.
                bytes[56..58].copy_from_slice(&[0x53, 0xEF]);
                bytes[24] %= 8;
                bytes[25..28].fill(0);
                bytes[20] %= 3;
                bytes[21..24].fill(0);
            }
            if let Some(shape) = Shape::read(&bytes, 1 << 40) {
                prop_assert!(shape.blocks * shape.block <= 1 << 40 && shape.groups <= MAX_GROUPS && shape.descriptor <= 1024);
                let free = shape.free(&group);
                prop_assert!(free.is_some());
            }
        }
    }
}
