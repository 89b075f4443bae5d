//! Strangers who connect and say nothing.

use std::time::{Duration, Instant};

use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::TcpStream,
};

use crate::{guests::Guests, support::World};

#[tokio::test(flavor = "multi_thread")]
async fn two_hundred_half_open_connections_keep_nobody_out() {
    let world = World::new().await;
    world.ssh("ann", &["whoami"]).await.ok();
    let _guests = Guests::of(&world).await;
    let mut half_open = Vec::new();
    for index in 0..200 {
        let mut stream = TcpStream::connect(("127.0.0.1", world.port)).await.unwrap();
        if index % 2 == 0 {
            stream.write_all(b"SSH-2.0-slow\r\n").await.unwrap();
        }
        half_open.push(stream);
    }
    let started = Instant::now();
    world.ssh("ann", &["whoami"]).await.ok();
    world.ssh("ann", &["exec", "web", "--", "true"]).await.ok();
    world.project("p").await;
    world.git("ann", "p", &["push", "silo", "main"]).await.ok();
    assert!(started.elapsed() < Duration::from_secs(10), "{:?}", started.elapsed());
    // The oldest were thrown out, the newest are still waiting. Those that come in one moment have no order.
    let mut waiting = 0;
    for stream in &mut half_open {
        waiting += u32::from(!is_closed(stream).await);
    }
    assert!((1..=32).contains(&waiting), "{waiting} are waiting");
}

#[tokio::test(flavor = "multi_thread")]
async fn who_proves_no_key_in_time_is_thrown_out() {
    let world = World::with(|settings| settings.auth_timeout = Duration::from_millis(300)).await;
    let mut silent = TcpStream::connect(("127.0.0.1", world.port)).await.unwrap();
    let mut greeting = TcpStream::connect(("127.0.0.1", world.port)).await.unwrap();
    greeting.write_all(b"SSH-2.0-slow\r\n").await.unwrap();
    tokio::time::sleep(Duration::from_millis(800)).await;
    assert!(is_closed(&mut silent).await && is_closed(&mut greeting).await);
    world.ssh("ann", &["whoami"]).await.ok();
}

/// Whether the other side has closed the connection, now or within a moment.
async fn is_closed(stream: &mut TcpStream) -> bool {
    let mut buffer = [0; 4096];
    loop {
        match tokio::time::timeout(Duration::from_millis(300), stream.read(&mut buffer)).await {
            Ok(Ok(0) | Err(_)) => return true,
            Ok(Ok(_)) => {}
            Err(_) => return false,
        }
    }
}
