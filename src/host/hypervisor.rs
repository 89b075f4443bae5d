//! Whether this machine's /dev/kvm can run anything. That it is there says little: inside of another virtual machine it may open,
//! make a virtual machine and a processor, and then not run a single instruction. So a few are run.
#![allow(unsafe_code, reason = "KVM is spoken to by ioctl(2), and shares memory")]

use std::{
    fs::{File, OpenOptions},
    io,
    sync::mpsc,
    thread,
    time::Duration,
};

/// Far more than the probe takes where it works: that is less than a millisecond.
const PATIENCE: Duration = Duration::from_secs(3);

/// Runs a few instructions with KVM. `Err` says in words why that does not work: "/dev/kvm is not there".
pub fn probe_kvm() -> Result<(), String> {
    let kvm = match OpenOptions::new().read(true).write(true).open("/dev/kvm") {
        Ok(kvm) => kvm,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Err("/dev/kvm is not there".to_owned()),
        Err(error) => return Err(format!("/dev/kvm cannot be opened: {error}")),
    };
    // A processor that never halts would keep its thread for ever; the agent goes on without it.
    let (done, result) = mpsc::channel();
    let probe = move || drop(done.send(run(&kvm)));
    thread::Builder::new().name("kvm-probe".into()).spawn(probe).map_err(|error| format!("/dev/kvm cannot be tried: {error}"))?;
    match result.recv_timeout(PATIENCE) {
        Ok(result) => result.map_err(|why| format!("/dev/kvm is there, but {why}")),
        Err(_) => {
            Err(format!("/dev/kvm is there, but a virtual machine of four instructions did not end in {} s", PATIENCE.as_secs()))
        }
    }
}

#[cfg(not(target_arch = "x86_64"))]
fn run(_kvm: &File) -> Result<(), String> {
    Ok(())
}

#[cfg(target_arch = "x86_64")]
fn run(kvm: &File) -> Result<(), String> {
    x86::run(kvm)
}

/// The part of linux/kvm.h that four instructions take.
#[cfg(target_arch = "x86_64")]
mod x86 {
    use std::{
        fs::File,
        io,
        os::fd::{AsRawFd, FromRawFd, RawFd},
        ptr,
    };

    const GET_API_VERSION: libc::c_ulong = 0xae00;
    const CREATE_VM: libc::c_ulong = 0xae01;
    const GET_VCPU_MMAP_SIZE: libc::c_ulong = 0xae04;
    const CREATE_VCPU: libc::c_ulong = 0xae41;
    const SET_USER_MEMORY_REGION: libc::c_ulong = 0x4020_ae46;
    const SET_TSS_ADDR: libc::c_ulong = 0xae47;
    const RUN: libc::c_ulong = 0xae80;
    const SET_REGS: libc::c_ulong = 0x4090_ae82;
    const GET_SREGS: libc::c_ulong = 0x8138_ae83;
    const SET_SREGS: libc::c_ulong = 0x4138_ae84;
    const EXIT_HLT: u32 = 5;
    const API_VERSION: i32 = 12;

    const MEMORY: usize = 0x4000;
    const CODE_AT: usize = 0x1000;
    const RESULT_AT: usize = 0x2000;
    /// mov ax, 0x1234; add ax, 1; mov [0x2000], ax; hlt
    const CODE: [u8; 10] = [0xb8, 0x34, 0x12, 0x05, 0x01, 0x00, 0xa3, 0x00, 0x20, 0xf4];

    #[repr(C)]
    struct MemoryRegion {
        slot: u32,
        flags: u32,
        guest: u64,
        size: u64,
        host: u64,
    }

    /// A mapping that ends with its value.
    struct Mapping {
        start: *mut u8,
        length: usize,
    }

    impl Mapping {
        fn new(length: usize, flags: i32, fd: RawFd) -> io::Result<Self> {
            // SAFETY: a new mapping at a place that the kernel chooses changes no memory of this program.
            let start = unsafe { libc::mmap(ptr::null_mut(), length, libc::PROT_READ | libc::PROT_WRITE, flags, fd, 0) };
            if start == libc::MAP_FAILED {
                return Err(io::Error::last_os_error());
            }
            Ok(Self { start: start.cast(), length })
        }
        fn write(&self, at: usize, bytes: &[u8]) {
            assert!(at + bytes.len() <= self.length);
            // SAFETY: the range lies inside of the mapping, which nobody else uses while the processor does not run.
            unsafe { ptr::copy_nonoverlapping(bytes.as_ptr(), self.start.add(at), bytes.len()) };
        }
        fn word(&self, at: usize) -> u32 {
            assert!(at + 4 <= self.length);
            // SAFETY: the range lies inside of the mapping; the processor does not run.
            unsafe { self.start.add(at).cast::<u32>().read_unaligned() }
        }
    }

    impl Drop for Mapping {
        fn drop(&mut self) {
            // SAFETY: it was mapped with this start and length, and no reference into it outlives it.
            unsafe { libc::munmap(self.start.cast(), self.length) };
        }
    }

    fn ioctl(file: &File, request: libc::c_ulong, argument: libc::c_ulong) -> io::Result<i32> {
        // SAFETY: every caller passes a number, or the address of a value of the size that the request's code names.
        let answer = unsafe { libc::ioctl(file.as_raw_fd(), request, argument) };
        if answer < 0 { Err(io::Error::last_os_error()) } else { Ok(answer) }
    }

    fn made(fd: i32) -> File {
        // SAFETY: the kernel has just made this descriptor for us, and nobody else knows it.
        unsafe { File::from_raw_fd(fd) }
    }

    pub(super) fn run(kvm: &File) -> Result<(), String> {
        let failed = |what: &'static str| move |error: io::Error| format!("it could not {what}: {error}");
        let version = ioctl(kvm, GET_API_VERSION, 0).map_err(failed("say its version"))?;
        if version != API_VERSION {
            return Err(format!("it speaks version {version} and not {API_VERSION}"));
        }
        let memory = Mapping::new(MEMORY, libc::MAP_SHARED | libc::MAP_ANONYMOUS, -1).map_err(failed("get memory"))?;
        memory.write(CODE_AT, &CODE);

        let machine = made(ioctl(kvm, CREATE_VM, 0).map_err(failed("make a virtual machine"))?);
        // Older Intel processors need a place for this in order to run real mode.
        ioctl(&machine, SET_TSS_ADDR, 0xfffb_d000).map_err(failed("prepare a virtual machine"))?;
        let region = MemoryRegion { slot: 0, flags: 0, guest: 0, size: MEMORY as u64, host: memory.start as u64 };
        ioctl(&machine, SET_USER_MEMORY_REGION, ptr::from_ref(&region) as libc::c_ulong).map_err(failed("give it memory"))?;
        let processor = made(ioctl(&machine, CREATE_VCPU, 0).map_err(failed("make a processor"))?);
        let size = ioctl(kvm, GET_VCPU_MMAP_SIZE, 0).map_err(failed("make a processor"))?;
        let size = usize::try_from(size).map_err(|_| "it made no processor".to_owned())?;
        let shared = Mapping::new(size, libc::MAP_SHARED, processor.as_raw_fd()).map_err(failed("make a processor"))?;

        // struct kvm_sregs begins with the code segment: base (8 bytes), limit (4), selector (2). Real mode, at 0.
        let mut segments = [0u64; 0x138 / 8];
        ioctl(&processor, GET_SREGS, segments.as_mut_ptr() as libc::c_ulong).map_err(failed("read registers"))?;
        segments[0] = 0;
        segments[1] &= !(0xffff << 32);
        ioctl(&processor, SET_SREGS, segments.as_ptr() as libc::c_ulong).map_err(failed("set registers"))?;
        // struct kvm_regs: sixteen general registers, then the instruction pointer and the flags.
        let mut registers = [0u64; 0x90 / 8];
        registers[16] = CODE_AT as u64;
        registers[17] = 2;
        ioctl(&processor, SET_REGS, registers.as_ptr() as libc::c_ulong).map_err(failed("set registers"))?;

        ioctl(&processor, RUN, 0).map_err(failed("run a processor"))?;
        // struct kvm_run: two bytes, six of padding, then the reason why it ended.
        let (reason, result) = (shared.word(8), memory.word(RESULT_AT) & 0xffff);
        match (reason, result) {
            (EXIT_HLT, 0x1235) => Ok(()),
            (EXIT_HLT, other) => Err(format!("its processor computes 0x1234 + 1 = {other:#x}")),
            (other, _) => Err(format!("its processor stopped for reason {other} before its fourth instruction")),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_answer_comes_soon_and_in_words() {
        let began = std::time::Instant::now();
        let answer = probe_kvm();
        assert!(began.elapsed() < PATIENCE + Duration::from_secs(1));
        eprintln!("{answer:?} after {:?}", began.elapsed());
        match answer {
            Ok(()) => assert!(std::path::Path::new("/dev/kvm").exists()),
            Err(why) => assert!(why.starts_with("/dev/kvm "), "{why}"),
        }
    }
}
