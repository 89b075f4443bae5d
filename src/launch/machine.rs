//! `seed machine`: tells systemd-machined of a virtual machine that got ready, so that `machinectl` knows it. Run by the vm unit as root
//! after the guest is up; a host without machined does without.

use std::process::ExitCode;

/// The virtual machine to tell of. Its main process is in `MAINPID`, as systemd sets it for ExecStartPost=.
#[derive(Debug, clap::Args)]
pub struct Args {
    /// The name under which machinectl shows it
    pub name: String,
}

/// Registers the machine. machined forgets it by itself when its main process ends.
pub fn main(args: &Args) -> ExitCode {
    match register(&args.name) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => super::complain("machine", &*error),
    }
}

fn register(name: &str) -> Result<(), Box<dyn std::error::Error>> {
    let leader: u32 = std::env::var("MAINPID").map_err(|_| "MAINPID is not set: this is run by a unit")?.parse()?;
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    runtime.block_on(async {
        let bus = zbus::Connection::system().await?;
        let (service, path, interface) =
            ("org.freedesktop.machine1", "/org/freedesktop/machine1", "org.freedesktop.machine1.Manager");
        // Name, machine id (none), service, class, leader, root directory (none).
        let machine = (name, Vec::<u8>::new(), "seed", "vm", leader, "");
        match bus.call_method(Some(service), path, Some(interface), "RegisterMachine", &machine).await {
            Ok(_) => Ok(()),
            Err(zbus::Error::MethodError(kind, _, _)) if ABSENT.contains(&kind.as_str()) => Ok(()),
            Err(error) => Err(error.into()),
        }
    })
}

/// What the bus says where there is no machined, and machined where the name is taken: by an earlier life of this machine.
const ABSENT: [&str; 3] = [
    "org.freedesktop.DBus.Error.ServiceUnknown",
    "org.freedesktop.DBus.Error.NameHasNoOwner",
    "org.freedesktop.machine1.MachineExists",
];
