//! The lab's workloads. A job's process writes each operation's time at once into a file that `ballast-testd` made for
//! it in memory, whole from the start: what is measured must neither wait for a reader nor die with the process.

use crate::now_us;
use anyhow::{Context, Result, bail};
use ballast_tests::wire::{Job, Request, Times, Worked};
use memmap2::MmapMut;
use std::fs::{self, File};
use std::io::Read;
use std::os::unix::fs::FileExt;
use std::os::unix::process::ExitStatusExt;
use std::process::{Command, ExitStatus, Stdio};
use std::sync::Mutex;
use std::sync::atomic::{AtomicU32, Ordering};
use std::thread;
use std::time::{Duration, Instant};

const PAGE: usize = 4096;
const MIB: usize = 1 << 20;
/// Four bytes each in `/run`, which has 16 MiB for all.
const MAX_OPERATIONS: u64 = 1 << 18;
/// A piece of what grows: what programs with many allocations ask the system for at a time.
const PIECE_MIB: u64 = 4;
/// Processes of a swarm at once; each has a thread that waits for it.
const MAX_ALIVE: u32 = 128;
/// Under it the kernel kills before it gives.
const LEAST_FREE_MIB: u64 = 16;
/// Before the times: when it started and ended, allocations refused, processes killed; eight bytes each.
const HEADER: u64 = 32;

/// Makes the file for a job's times, all zeros.
pub fn prepare(job: &Job, path: &str) -> Result<()> {
    let operations = job.operations();
    if operations == 0 || operations > MAX_OPERATIONS {
        bail!("{job:?} has {operations} operations: 1 to {MAX_OPERATIONS} are possible");
    }
    // Written, not only made longer: no page of it is wanting when memory does.
    fs::write(path, vec![0; (HEADER + 4 * operations) as usize]).with_context(|| path.to_owned())
}

/// Reads what became of a job from its file, and removes that.
pub fn outcome(path: &str, status: ExitStatus, oom_kills: u64, why: String) -> Result<Worked> {
    let bytes = fs::read(path).with_context(|| path.to_owned())?;
    fs::remove_file(path)?;
    let (header, times) = bytes.split_at_checked(HEADER as usize).context("the file of times is cut short")?;
    let field = |n: usize| header[8 * n..].first_chunk().map_or(0, |b| u64::from_ne_bytes(*b));
    let time = |bytes: &[u8]| bytes.first_chunk().map_or(0, |b| u32::from_ne_bytes(*b));
    let mut times: Vec<u32> = times.chunks(4).map(time).take_while(|&us| us > 0).collect();
    let now = now_us();
    let or_now = |at: u64| if at == 0 { now } else { at };
    let mut worked = Worked {
        started_us: or_now(field(0)),
        ended_us: or_now(field(1)),
        times: Times::of(&mut times),
        refused: field(2),
        killed: field(3),
        oom_kills,
        why,
    };
    if let Some(signal) = status.signal() {
        worked.killed += 1;
        worked.why = format!("killed by signal {signal}");
    }
    Ok(worked)
}

/// The file of times, in the job's own process.
struct Log {
    file: File,
    next: u64,
}

impl Log {
    fn open(path: &str) -> Result<Self> {
        Ok(Self { file: File::options().write(true).open(path).with_context(|| path.to_owned())?, next: 0 })
    }

    fn set(&self, field: u64, value: u64) -> Result<()> {
        Ok(self.file.write_all_at(&value.to_ne_bytes(), 8 * field)?)
    }

    fn operation(&mut self, took: Duration) -> Result<()> {
        // 0 is the end.
        let us = u32::try_from(took.as_micros()).unwrap_or(u32::MAX).max(1);
        self.file.write_all_at(&us.to_ne_bytes(), HEADER + 4 * self.next)?;
        self.next += 1;
        Ok(())
    }
}

/// Does a job; answers why it ended before its time, or nothing.
pub fn run(job: &Job, path: &str) -> Result<String> {
    let mut log = Log::open(path)?;
    let why = match job {
        Job::Burst { mib, work } => grow(&mut log, *mib, *mib, None, *work)?.1,
        Job::Ramp { mib, rate_mib_s, work } => grow(&mut log, *mib, PIECE_MIB, Some(*rate_mib_s), *work)?.1,
        Job::Leak { mib, rate_mib_s, secs } => {
            let end = Instant::now() + Duration::from_secs((*secs).into());
            let (held, why) = grow(&mut log, *mib, PIECE_MIB, Some(*rate_mib_s), 0)?;
            thread::sleep(end.saturating_duration_since(Instant::now()));
            drop(held);
            why
        }
        Job::Scan { mib, passes, path } => scan(&mut log, path, *mib, *passes)?,
        Job::Swarm { count, alive, mib, work } => swarm(log, *count, *alive, &Job::Burst { mib: *mib, work: *work })?,
        Job::Age { keep_free_mib } => age(&mut log, (*keep_free_mib).max(LEAST_FREE_MIB))?,
    };
    Ok(why)
}

/// Maps piece by piece and uses each MiB; what was mapped, and why it is not all.
fn grow(log: &mut Log, mib: u64, piece: u64, rate: Option<u64>, work: u32) -> Result<(Vec<MmapMut>, String)> {
    let mut held = Vec::with_capacity((mib / piece.max(1) + 1) as usize);
    let mut why = String::new();
    let mut seed = 0x9e37_79b9_7f4a_7c15;
    let mut done = 0;
    log.set(0, now_us())?;
    let started = Instant::now();
    'all: while done < mib {
        let mut map = match MmapMut::map_anon(piece.min(mib - done) as usize * MIB) {
            Ok(map) => map,
            Err(e) => {
                log.set(2, 1)?;
                why = e.to_string();
                break 'all;
            }
        };
        for chunk in map.chunks_mut(MIB) {
            if let Some(rate) = rate {
                let due = Duration::from_micros(done * 1_000_000 / rate.max(1));
                thread::sleep(due.saturating_sub(started.elapsed()));
            }
            let before = Instant::now();
            compute(chunk, work, &mut seed);
            log.operation(before.elapsed())?;
            done += 1;
        }
        held.push(map);
    }
    log.set(1, now_us())?;
    Ok((held, why))
}

/// One operation: the first touch of a MiB, and what a program does with it.
fn compute(mib: &mut [u8], work: u32, seed: &mut u64) {
    if work == 0 {
        for page in mib.chunks_mut(PAGE) {
            page[0] = 1;
        }
        return;
    }
    for word in mib.chunks_exact_mut(8) {
        // xorshift64 (Marsaglia 2003): nothing below can make these pages smaller.
        *seed ^= *seed << 13;
        *seed ^= *seed >> 7;
        *seed ^= *seed << 17;
        word.copy_from_slice(&seed.to_ne_bytes());
    }
    for _ in 0..work {
        let sum = |sum: u64, word: &[u8]| {
            let word = word.first_chunk().map_or(0, |b| u64::from_ne_bytes(*b));
            (sum ^ word).wrapping_mul(0x100_0000_01b3)
        };
        std::hint::black_box(mib.chunks_exact(8).fold(0, sum));
    }
}

fn scan(log: &mut Log, path: &str, mib: u64, passes: u32) -> Result<String> {
    let file = File::open(path).with_context(|| path.to_owned())?;
    let has = file.metadata()?.len() >> 20;
    if has < mib {
        bail!("{path} has {has} MiB, {mib} are to be read");
    }
    let mut buffer = vec![1; MIB];
    log.set(0, now_us())?;
    for at in (0..passes).flat_map(|_| 0..mib) {
        let before = Instant::now();
        file.read_exact_at(&mut buffer, at << 20).with_context(|| path.to_owned())?;
        log.operation(before.elapsed())?;
    }
    log.set(1, now_us())?;
    Ok(String::new())
}

/// One thread for each that is alive: it starts the next when its own has ended.
fn swarm(log: Log, count: u32, alive: u32, each: &Job) -> Result<String> {
    if alive == 0 || alive > MAX_ALIVE {
        bail!("{alive} alive at once: 1 to {MAX_ALIVE} are possible");
    }
    let request = serde_json::to_string(&Request::Job(each.clone()))?;
    let started = AtomicU32::new(0);
    log.set(0, now_us())?;
    let shared = Mutex::new((log, 0, 0, String::new()));
    let one = || -> Result<()> {
        while started.fetch_add(1, Ordering::Relaxed) < count {
            let before = Instant::now();
            // Its own times are of no interest.
            let mut command = Command::new("/proc/self/exe");
            command.args(["work", &request, "/dev/null"]).stdin(Stdio::null()).stdout(Stdio::piped());
            let ended = command.spawn().and_then(|mut child| {
                let mut said = String::new();
                if let Some(mut out) = child.stdout.take() {
                    out.read_to_string(&mut said)?;
                }
                Ok((child.wait()?, said))
            });
            let took = before.elapsed();
            let mut shared = shared.lock().expect("no holder panics");
            let (log, refused, killed, why) = &mut *shared;
            match ended {
                Ok((status, said)) if status.success() && said.trim() == r#"{"Ok":""}"# => log.operation(took)?,
                Ok((status, _)) if status.signal().is_some() => {
                    *killed += 1;
                    *why = format!("{status}");
                }
                Ok((_, said)) => {
                    *refused += 1;
                    *why = said.trim().to_owned();
                }
                Err(e) => {
                    *refused += 1;
                    *why = e.to_string();
                }
            }
        }
        Ok(())
    };
    thread::scope(|scope| {
        let all: Vec<_> = (0..alive).map(|_| scope.spawn(one)).collect();
        all.into_iter().try_for_each(|thread| thread.join().expect("it has nothing to panic of"))
    })?;
    let (log, refused, killed, why) = shared.into_inner().expect("no holder panics");
    log.set(1, now_us())?;
    log.set(2, refused)?;
    log.set(3, killed)?;
    Ok(why)
}

fn age(log: &mut Log, keep_free_mib: u64) -> Result<String> {
    rustix::fs::sync();
    fs::write("/proc/sys/vm/drop_caches", "3").context("drop_caches")?;
    let available = || crate::counters::sample(None).available_kib >> 10;
    let mut held = Vec::new();
    log.set(0, now_us())?;
    while available() >= keep_free_mib + PIECE_MIB {
        let mut map = MmapMut::map_anon(PIECE_MIB as usize * MIB)?;
        for mib in map.chunks_mut(MIB) {
            let before = Instant::now();
            compute(mib, 0, &mut 0);
            log.operation(before.elapsed())?;
        }
        held.push(map);
    }
    log.set(1, now_us())?;
    Ok(String::new())
}
