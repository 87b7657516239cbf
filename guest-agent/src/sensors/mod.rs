//! What the guest can see of itself. Every sensor has a root path, so that tests read captured trees; what this kernel
//! lacks is `None`, never 0.

pub mod balloon;
pub mod cgroup;
pub mod file;
pub mod meminfo;
pub mod pressure;
pub mod vmstat;
pub mod zoneinfo;

pub use file::{Scratch, SensorError};
pub use meminfo::Meminfo;
pub use vmstat::Vmstat;

use ballast_protocol::{Bytes, Capabilities, Micros, Telemetry, Watermarks};
use std::path::{Path, PathBuf};

/// All sensors, their files open.
#[derive(Debug)]
pub struct Sensors {
    root: PathBuf,
    /// Free memory comes from `sysinfo(2)`; a captured tree has only its meminfo.
    live: bool,
    meminfo: meminfo::MeminfoSensor,
    vmstat: Option<vmstat::VmstatSensor>,
    zoneinfo: Option<zoneinfo::ZoneinfoSensor>,
    memory_pressure: Option<pressure::PressureSensor>,
    io_pressure: Option<pressure::PressureSensor>,
    cpu_pressure: Option<pressure::PressureSensor>,
    /// The cgroup v2 hierarchy with the memory controller, if there is one.
    pub cgroups: Option<cgroup::Cgroups>,
    /// The balloon as the driver negotiated it.
    pub balloon: Option<ballast_protocol::BalloonFeatures>,
    /// Enabled parts of the multi-generational LRU.
    pub lru_gen: Option<u64>,
    scratch: Scratch,
}

impl Sensors {
    /// Opens everything this kernel has under `root`.
    ///
    /// # Errors
    /// `/proc/meminfo` is missing, or a file that is there cannot be opened.
    pub fn open(root: &Path) -> Result<Self, SensorError> {
        let mut scratch = Scratch::default();
        Ok(Self {
            live: root == Path::new("/"),
            meminfo: meminfo::MeminfoSensor::open(root)?,
            vmstat: vmstat::VmstatSensor::open(root)?,
            zoneinfo: zoneinfo::ZoneinfoSensor::open(root)?,
            memory_pressure: pressure::PressureSensor::open(root, "proc/pressure/memory")?,
            io_pressure: pressure::PressureSensor::open(root, "proc/pressure/io")?,
            cpu_pressure: pressure::PressureSensor::open(root, "proc/pressure/cpu")?,
            cgroups: cgroup::Cgroups::find(root, &mut scratch),
            balloon: balloon::find(root, &mut scratch),
            lru_gen: balloon::lru_gen(root, &mut scratch),
            root: root.to_owned(),
            scratch,
        })
    }

    /// Looks again for devices and cgroups, which may come after the agent.
    pub fn rescan(&mut self) {
        self.cgroups = cgroup::Cgroups::find(&self.root, &mut self.scratch);
        self.balloon = balloon::find(&self.root, &mut self.scratch);
    }

    /// Where the tree begins.
    #[must_use]
    pub fn root(&self) -> &Path {
        &self.root
    }

    /// Free memory: 2 us.
    ///
    /// # Errors
    /// Only with a captured tree.
    pub fn free(&mut self) -> Result<Bytes, SensorError> {
        if self.live {
            let info = rustix::system::sysinfo();
            return Ok(Bytes(info.freeram.saturating_mul(u64::from(info.mem_unit))));
        }
        Ok(self.meminfo()?.free)
    }

    /// `/proc/meminfo`: 22 us.
    ///
    /// # Errors
    /// It cannot be read.
    pub fn meminfo(&mut self) -> Result<Meminfo, SensorError> {
        self.meminfo.read(&mut self.scratch)
    }

    /// `/proc/vmstat`: 49 us; all `None` and zero when this kernel lacks it.
    ///
    /// # Errors
    /// It cannot be read.
    pub fn vmstat(&mut self) -> Result<Vmstat, SensorError> {
        self.vmstat.as_ref().map_or(Ok(Vmstat::default()), |v| v.read(&mut self.scratch))
    }

    /// The watermarks; zero when this kernel does not say.
    ///
    /// # Errors
    /// They cannot be read.
    pub fn watermarks(&mut self) -> Result<Watermarks, SensorError> {
        self.zoneinfo.as_ref().map_or(Ok(Watermarks::default()), |z| z.read(&mut self.scratch))
    }

    /// Memory, I/O and CPU pressure.
    pub fn pressures(&mut self) -> [Option<ballast_protocol::Pressure>; 3] {
        let scratch = &mut self.scratch;
        [&self.memory_pressure, &self.io_pressure, &self.cpu_pressure]
            .map(|sensor| sensor.as_ref().and_then(|p| p.read(scratch)))
    }

    /// What this kernel allows; `absorber` is the agent's choice.
    pub fn capabilities(&mut self, absorber: bool) -> Capabilities {
        let psi = self.pressures()[0].is_some();
        Capabilities {
            psi,
            cgroup2: self.cgroups.is_some(),
            reclaim: self.cgroups.as_ref().is_some_and(cgroup::Cgroups::can_reclaim),
            absorber: absorber && self.cgroups.is_some(),
            balloon: self.balloon,
        }
    }

    /// One report, but for what only the agent knows (`seq`, `pending`).
    ///
    /// # Errors
    /// A file cannot be read.
    pub fn telemetry(&mut self, at: Micros, watermarks: Watermarks) -> Result<Telemetry, SensorError> {
        let m = self.meminfo()?;
        let v = self.vmstat()?;
        let scratch = &mut self.scratch;
        let [memory_pressure, io_pressure] =
            [&self.memory_pressure, &self.io_pressure].map(|sensor| sensor.as_ref().and_then(|p| p.read(scratch)));
        Ok(Telemetry {
            seq: 0,
            at,
            total: m.total,
            free: m.free,
            available: m.available.unwrap_or(Bytes::ZERO),
            file: m.file(),
            dirty: m.unwritten(),
            anon: m.anon,
            shmem: m.shmem,
            committed: m.committed,
            swap_total: m.swap_total,
            swap_free: m.swap_free,
            watermarks,
            giveable: m.giveable(),
            ballooned: v.ballooned(),
            pending: Bytes::ZERO,
            memory_pressure,
            io_pressure,
            counters: v.counters,
            agent_cpu: crate::clock::cpu(),
        })
    }
}
