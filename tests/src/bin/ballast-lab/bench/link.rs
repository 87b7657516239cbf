//! The vsock round trip: this program is the host agent of one session and pings the real agent in a real guest.

use super::{Measured, Quantiles};
use anyhow::{Context, Result, bail};
use ballast_protocol::{
    DEFAULT_PORT, Deframer, GuestMessage, HostMessage, MAX_FRAME, Micros, Ping, VERSION, Welcome, encode,
};
use ballast_tests::Machine;
use std::io::{Read, Write};
use std::os::unix::net::{UnixListener, UnixStream};
use std::time::{Duration, Instant};

const SAMPLES: u64 = 1_000;
/// The agent's first answers touch code for the first time.
const WARM_UP: u64 = 20;
const PAUSE: Duration = Duration::from_millis(10);
/// The agent dials again at least this often.
const PATIENCE: Duration = Duration::from_secs(20);

/// Milliseconds from a ping to its pong, less what the guest took between the two. The guest agent runs already.
pub fn measure(machine: &Machine) -> Result<Measured<Quantiles>> {
    let Some(hybrid) = machine.vsock.as_ref().and_then(|v| v.hybrid.clone()) else {
        return Ok(Measured::no("measured on hybrid vsock, and this machine has the kernel's device"));
    };
    let path = format!("{}_{DEFAULT_PORT}", hybrid.display());
    let listener = UnixListener::bind(&path).with_context(|| path.clone())?;
    let stream = accept(&listener, &machine.guest.log());
    std::fs::remove_file(&path)?;
    let mut session = Session { stream: stream?, deframer: Deframer::default() };
    let GuestMessage::Hello(_) = session.read()? else { bail!("the first message is no Hello") };
    let silence = Micros::secs(3);
    let (idle_interval, busy_interval) = (Micros::secs(1), Micros::millis(100));
    session.write(&HostMessage::Welcome(Welcome { version: VERSION, silence, idle_interval, busy_interval }))?;
    let mut samples = Vec::new();
    for seq in 0..WARM_UP + SAMPLES {
        let begun = Instant::now();
        session.write(&HostMessage::Ping(Ping { seq, at: Micros::ZERO }))?;
        let inside = loop {
            if let GuestMessage::Pong(pong) = session.read()?
                && pong.seq == seq
            {
                break pong.sent - pong.received;
            }
        };
        if seq >= WARM_UP {
            samples.push(begun.elapsed().as_secs_f64() * 1e3 - inside.millis_f64());
        }
        std::thread::sleep(PAUSE);
    }
    Ok(Quantiles::of(samples).map_or_else(|| Measured::no("no pong"), Measured::Yes))
}

fn accept(listener: &UnixListener, log: &str) -> Result<UnixStream> {
    listener.set_nonblocking(true)?;
    let begun = Instant::now();
    loop {
        match listener.accept() {
            Ok((stream, _)) => {
                stream.set_nonblocking(false)?;
                stream.set_read_timeout(Some(PATIENCE))?;
                return Ok(stream);
            }
            Err(e) if e.kind() != std::io::ErrorKind::WouldBlock => return Err(e.into()),
            Err(_) if begun.elapsed() > PATIENCE => bail!("the guest agent does not dial\n{log}"),
            Err(_) => std::thread::sleep(Duration::from_millis(5)),
        }
    }
}

struct Session {
    stream: UnixStream,
    deframer: Deframer,
}

impl Session {
    fn read(&mut self) -> Result<GuestMessage> {
        loop {
            if let Some(message) = self.deframer.next_frame()? {
                return Ok(message);
            }
            match self.stream.read(self.deframer.space()).context("the guest agent is silent")? {
                0 => bail!("the guest agent closed the connection"),
                count => self.deframer.advance(count),
            }
        }
    }

    fn write(&mut self, message: &HostMessage) -> Result<()> {
        let mut buffer = [0; MAX_FRAME];
        Ok(self.stream.write_all(encode(message, &mut buffer)?)?)
    }
}
