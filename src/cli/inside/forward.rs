//! `seed forward INSTANCE PORT [LOCALPORT]`: a TCP port of an instance at this machine's loopback, until Ctrl-C.

use std::{net::Ipv4Addr, process::ExitCode, sync::Arc};

use tokio::{
    io::copy_bidirectional,
    net::{TcpListener, TcpStream},
    signal::unix::{SignalKind, signal},
    sync::Semaphore,
    task::JoinSet,
};

use crate::{
    bus::{Refusal, SeedProxy, shell},
    serve::{ask, command::Inside, guest},
};

/// Connections at a time; each has a way into the guest of its own, so that one which nobody reads holds up no other.
const MAX_CONNECTIONS: usize = 64;

const USAGE: &str = "forward needs an instance and a port: forward web 80, or forward web 80 8080 to have it at another port here";

#[derive(Debug, PartialEq, Eq)]
pub struct Forward {
    instance: String,
    port: u16,
    /// The port here; 0 for any that is free.
    here: u16,
}

impl Forward {
    pub fn parse(words: &[String]) -> Result<Self, Refusal> {
        let words: Vec<&str> = words.iter().map(String::as_str).filter(|word| *word != "--json").collect();
        let (instance, port, here) = match words[..] {
            [instance, port] => (instance, port, port),
            [instance, port, here] => (instance, port, here),
            _ => return Err(Refusal::Invalid(USAGE.to_owned())),
        };
        if instance.starts_with('-') {
            return Err(Refusal::Invalid(USAGE.to_owned()));
        }
        let number = |text: &str, least: u16| {
            let found = text.parse().ok().filter(|port| *port >= least);
            found.ok_or_else(|| Refusal::Invalid(format!("{text:?} is no port: that is a number from {least} to 65535")))
        };
        Ok(Self { instance: instance.to_owned(), port: number(port, 1)?, here: number(here, 0)? })
    }

    pub async fn run(self, agent: &SeedProxy<'_>, json: bool) -> Result<ExitCode, Refusal> {
        let Self { instance, port, here } = self;
        let failed = |error: std::io::Error| Refusal::Failed(format!("could not listen for Ctrl-C: {error}"));
        let mut interrupt = signal(SignalKind::interrupt()).map_err(failed)?;
        let mut terminate = signal(SignalKind::terminate()).map_err(failed)?;
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, here)).await.map_err(|error| {
            Refusal::Failed(format!(
                "port {here} of 127.0.0.1 cannot be had ({error}): choose another: forward {instance} {port} 8080"
            ))
        })?;
        let address = listener.local_addr().map_err(|error| Refusal::Failed(error.to_string()))?;
        // Whether there is such an instance is said before anybody connects.
        guest::enter(agent, "", &instance, crate::bus::guest::Act::Forward, &format!("port {port}")).await?;
        if json {
            let address = address.to_string();
            print!("{}", shell::line(&shell::Forwarding { version: 1, address, instance: instance.clone(), port }));
        } else {
            println!("{address} is port {port} of {instance}, until Ctrl-C");
        }
        let places = Arc::new(Semaphore::new(MAX_CONNECTIONS));
        let mut connections = JoinSet::new();
        loop {
            let accepted = tokio::select! {
                accepted = listener.accept() => accepted,
                _ = interrupt.recv() => return Ok(ExitCode::SUCCESS),
                _ = terminate.recv() => return Ok(ExitCode::SUCCESS),
            };
            while connections.try_join_next().is_some() {}
            let (stream, place) = match (accepted, Arc::clone(&places).try_acquire_owned()) {
                (Ok((stream, _)), Ok(place)) => (stream, place),
                (Ok(_), Err(_)) => {
                    eprintln!("error: there are {MAX_CONNECTIONS} connections already: one more was closed");
                    continue;
                }
                (Err(error), _) => return Err(Refusal::Failed(format!("could not accept a connection: {error}"))),
            };
            let (bus, instance) = (agent.inner().connection().clone(), instance.clone());
            connections.spawn(async move {
                if let Err(refusal) = connection(&bus, &instance, port, stream).await {
                    eprintln!("error: {}", ask::words(&refusal));
                }
                drop(place);
            });
        }
    }
}

async fn connection(bus: &zbus::Connection, instance: &str, port: u16, mut stream: TcpStream) -> Result<(), Refusal> {
    let agent = SeedProxy::new(bus).await?;
    let (_guest, channel) = guest::visit(&agent, "", instance, &Inside::Port(port), None).await?;
    // Either side may end in the middle, which is its own business.
    drop(copy_bidirectional(&mut stream, &mut channel.into_stream()).await);
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ports_are_numbers_and_the_one_here_is_the_same_unless_it_is_said() {
        let parse = |line: &str| {
            let words: Vec<String> = line.split_whitespace().map(str::to_owned).collect();
            Forward::parse(&words).map_err(|refusal| refusal.to_string())
        };
        let made = |port, here| Ok(Forward { instance: "web".to_owned(), port, here });
        assert_eq!(parse("web 80"), made(80, 80));
        assert_eq!(parse("web 80 8080 --json"), made(80, 8080));
        assert_eq!(parse("web 80 0"), made(80, 0));
        for line in ["", "web", "web 0", "web 80 x", "web 99999", "web 80 8080 1", "-L web 80", "web -1"] {
            assert!(parse(line).is_err(), "{line}");
        }
    }
}
