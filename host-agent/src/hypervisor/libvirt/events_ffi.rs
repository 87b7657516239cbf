//! libvirt's events, which crate `virt` does not wrap: with `job_ffi` and `heap` the only modules of this crate where `unsafe`
//! is allowed.
//!
//! Every callback gets a pointer to a [`Sink`] of its own. libvirt frees it with [`free_sink`], once, when the callback
//! is deregistered or its connection goes, and never calls the callback afterwards (libvirt, docs/api,
//! virConnectDomainEventRegisterAny). A callback runs on the event loop's thread; it copies what it was given, sends
//! it on, and returns.
#![allow(unsafe_code)]

use super::{FromLibvirt, Inbox, Occurrence};
use std::ffi::{CStr, c_char, c_int, c_ulonglong, c_void};
use std::ptr;
use std::sync::OnceLock;
use std::time::Duration;
use virt::connect::Connect;
use virt::error::Error;
use virt::{event, sys};

/// Where a callback sends what it hears.
struct Sink {
    worker: Inbox,
    /// The connection it belongs to.
    connection: u64,
}

/// What every libvirtd tells (since 0.8.0 and 0.10.0).
const ESSENTIAL: [sys::virDomainEventID; 3] =
    [sys::VIR_DOMAIN_EVENT_ID_LIFECYCLE, sys::VIR_DOMAIN_EVENT_ID_REBOOT, sys::VIR_DOMAIN_EVENT_ID_BALLOON_CHANGE];

/// Callbacks of one connection. Must be dropped before the connection is closed, and not in a callback.
pub(super) struct Registration {
    connection: sys::virConnectPtr,
    domain_events: Vec<c_int>,
    close: bool,
}

/// Starts libvirt's event loop, once in this process, before the first connection is opened.
pub(super) fn start_event_loop() -> Result<(), String> {
    static STARTED: OnceLock<Result<(), String>> = OnceLock::new();
    let start = || {
        virt::error::clear_error_callback();
        event::event_register_default_impl().map_err(|e| e.message().to_owned())?;
        let run = || {
            loop {
                if let Err(error) = event::event_run_default_impl() {
                    tracing::warn!(error = error.message(), "libvirt's event loop stumbles");
                    std::thread::sleep(Duration::from_millis(100));
                }
            }
        };
        std::thread::Builder::new().name("libvirt events".into()).spawn(run).map_err(|e| e.to_string())?;
        Ok(())
    };
    STARTED.get_or_init(start).clone()
}

impl Registration {
    pub fn new(connect: &Connect, number: u64, worker: &Inbox) -> Result<Self, Error> {
        let connection = connect.as_ptr();
        let mut this = Self { connection, domain_events: Vec::new(), close: false };
        let sink = || Box::into_raw(Box::new(Sink { worker: worker.clone(), connection: number })).cast::<c_void>();

        // SAFETY: the connection is open; the sink is a fresh allocation that libvirt owns from here on if it accepts.
        let registered = unsafe {
            let sink = sink();
            let result = sys::virConnectRegisterCloseCallback(connection, Some(closed), sink, Some(free_sink));
            reclaim_unless(result != -1, sink);
            result
        };
        if registered == -1 {
            return Err(Error::last_error());
        }
        this.close = true;

        // SAFETY: libvirt declares all callbacks with one type and calls each with the arguments of its event's own
        // type (the macro VIR_DOMAIN_EVENT_CALLBACK in C is the same cast).
        let callbacks: [(sys::virDomainEventID, sys::virConnectDomainEventGenericCallback); 9] = unsafe {
            [
                (
                    sys::VIR_DOMAIN_EVENT_ID_LIFECYCLE,
                    std::mem::transmute::<sys::virConnectDomainEventCallback, sys::virConnectDomainEventGenericCallback>(
                        Some(lifecycle),
                    ),
                ),
                (sys::VIR_DOMAIN_EVENT_ID_REBOOT, Some(reboot)),
                (
                    sys::VIR_DOMAIN_EVENT_ID_BALLOON_CHANGE,
                    std::mem::transmute::<
                        sys::virConnectDomainEventBalloonChangeCallback,
                        sys::virConnectDomainEventGenericCallback,
                    >(Some(balloon_change)),
                ),
                (
                    sys::VIR_DOMAIN_EVENT_ID_METADATA_CHANGE,
                    std::mem::transmute::<
                        sys::virConnectDomainEventMetadataChangeCallback,
                        sys::virConnectDomainEventGenericCallback,
                    >(Some(metadata_change)),
                ),
                (
                    sys::VIR_DOMAIN_EVENT_ID_MIGRATION_ITERATION,
                    std::mem::transmute::<
                        sys::virConnectDomainEventMigrationIterationCallback,
                        sys::virConnectDomainEventGenericCallback,
                    >(Some(migration_iteration)),
                ),
                (
                    sys::VIR_DOMAIN_EVENT_ID_JOB_COMPLETED,
                    std::mem::transmute::<
                        sys::virConnectDomainEventJobCompletedCallback,
                        sys::virConnectDomainEventGenericCallback,
                    >(Some(job_completed)),
                ),
                (
                    sys::VIR_DOMAIN_EVENT_ID_DEVICE_ADDED,
                    std::mem::transmute::<
                        sys::virConnectDomainEventDeviceAddedCallback,
                        sys::virConnectDomainEventGenericCallback,
                    >(Some(device_change)),
                ),
                (
                    sys::VIR_DOMAIN_EVENT_ID_DEVICE_REMOVED,
                    std::mem::transmute::<
                        sys::virConnectDomainEventDeviceRemovedCallback,
                        sys::virConnectDomainEventGenericCallback,
                    >(Some(device_change)),
                ),
                (
                    sys::VIR_DOMAIN_EVENT_ID_MEMORY_DEVICE_SIZE_CHANGE,
                    std::mem::transmute::<
                        sys::virConnectDomainEventMemoryDeviceSizeChangeCallback,
                        sys::virConnectDomainEventGenericCallback,
                    >(Some(memory_device_size_change)),
                ),
            ]
        };
        for (id, callback) in callbacks {
            // SAFETY: as above; a null domain stands for all domains.
            let registered = unsafe {
                let sink = sink();
                let result = sys::virConnectDomainEventRegisterAny(
                    connection,
                    ptr::null_mut(),
                    id as c_int,
                    callback,
                    sink,
                    Some(free_sink),
                );
                reclaim_unless(result != -1, sink);
                result
            };
            if registered == -1 {
                let error = Error::last_error();
                if ESSENTIAL.contains(&id) {
                    return Err(error);
                }
                // An older libvirtd: what it does not tell, the next look finds.
                tracing::debug!(event = id, error = error.message(), "libvirt does not tell of this");
                continue;
            }
            this.domain_events.push(registered);
        }
        Ok(this)
    }
}

impl Drop for Registration {
    fn drop(&mut self) {
        for id in &self.domain_events {
            // SAFETY: the connection is still held by our owner, and the id came from it. On a connection that broke
            // this fails, and the sink goes with the connection.
            unsafe { sys::virConnectDomainEventDeregisterAny(self.connection, *id) };
        }
        if self.close {
            // SAFETY: as above.
            unsafe { sys::virConnectUnregisterCloseCallback(self.connection, Some(closed)) };
        }
    }
}

/// # Safety
/// `sink` came from [`Box::into_raw`] and libvirt has not taken it unless `taken`.
unsafe fn reclaim_unless(taken: bool, sink: *mut c_void) {
    if !taken {
        // SAFETY: the caller's promise.
        unsafe { free_sink(sink) };
    }
}

unsafe extern "C" fn free_sink(sink: *mut c_void) {
    // SAFETY: made by `Box::into_raw` in `Registration::new`; libvirt calls this once.
    drop(unsafe { Box::from_raw(sink.cast::<Sink>()) });
}

unsafe extern "C" fn closed(_: sys::virConnectPtr, reason: c_int, sink: *mut c_void) {
    let why = match reason as sys::virConnectCloseReason {
        sys::VIR_CONNECT_CLOSE_REASON_EOF => "libvirtd closed the connection",
        sys::VIR_CONNECT_CLOSE_REASON_KEEPALIVE => "libvirtd does not answer keepalives",
        _ => "the connection to libvirtd broke",
    };
    // SAFETY: libvirt passes the sink we registered, alive until `free_sink`.
    let sink = unsafe { &*sink.cast::<Sink>() };
    sink.worker.hear(FromLibvirt::Closed { connection: sink.connection, why });
}

unsafe extern "C" fn lifecycle(
    _: sys::virConnectPtr,
    domain: sys::virDomainPtr,
    event: c_int,
    _detail: c_int,
    sink: *mut c_void,
) -> c_int {
    let occurrence = match event as sys::virDomainEventType {
        sys::VIR_DOMAIN_EVENT_STARTED => Occurrence::Started,
        sys::VIR_DOMAIN_EVENT_STOPPED => Occurrence::Stopped,
        sys::VIR_DOMAIN_EVENT_RESUMED => Occurrence::Resumed,
        // A guest that panicked and is kept for a look stands as still as one that was paused.
        sys::VIR_DOMAIN_EVENT_SUSPENDED | sys::VIR_DOMAIN_EVENT_PMSUSPENDED | sys::VIR_DOMAIN_EVENT_CRASHED => {
            Occurrence::Paused
        }
        _ => return 0,
    };
    // SAFETY: libvirt's arguments, passed on.
    unsafe { send(domain, occurrence, sink) };
    0
}

unsafe extern "C" fn reboot(_: sys::virConnectPtr, domain: sys::virDomainPtr, sink: *mut c_void) {
    // SAFETY: libvirt's arguments, passed on.
    unsafe { send(domain, Occurrence::Reset, sink) };
}

unsafe extern "C" fn balloon_change(
    _: sys::virConnectPtr,
    domain: sys::virDomainPtr,
    actual: c_ulonglong,
    sink: *mut c_void,
) {
    // SAFETY: libvirt's arguments, passed on.
    unsafe { send(domain, Occurrence::BalloonMoved(actual), sink) };
}

unsafe extern "C" fn metadata_change(
    _: sys::virConnectPtr,
    domain: sys::virDomainPtr,
    _kind: c_int,
    _namespace: *const c_char,
    sink: *mut c_void,
) {
    // SAFETY: libvirt's arguments, passed on.
    unsafe { send(domain, Occurrence::Changed, sink) };
}

unsafe extern "C" fn migration_iteration(
    _: sys::virConnectPtr,
    domain: sys::virDomainPtr,
    _iteration: c_int,
    sink: *mut c_void,
) {
    // SAFETY: libvirt's arguments, passed on.
    unsafe { send(domain, Occurrence::Migrates, sink) };
}

unsafe extern "C" fn job_completed(
    _: sys::virConnectPtr,
    domain: sys::virDomainPtr,
    _parameters: sys::virTypedParameterPtr,
    _count: c_int,
    sink: *mut c_void,
) {
    // SAFETY: libvirt's arguments, passed on; the parameters stay libvirt's.
    unsafe { send(domain, Occurrence::Changed, sink) };
}

unsafe extern "C" fn device_change(
    _: sys::virConnectPtr,
    domain: sys::virDomainPtr,
    _alias: *const c_char,
    sink: *mut c_void,
) {
    // SAFETY: libvirt's arguments, passed on.
    unsafe { send(domain, Occurrence::Changed, sink) };
}

unsafe extern "C" fn memory_device_size_change(
    _: sys::virConnectPtr,
    domain: sys::virDomainPtr,
    _alias: *const c_char,
    _size: c_ulonglong,
    sink: *mut c_void,
) {
    // SAFETY: libvirt's arguments, passed on.
    unsafe { send(domain, Occurrence::Changed, sink) };
}

/// # Safety
/// `domain` and `sink` are what libvirt passed to a callback that is still running.
unsafe fn send(domain: sys::virDomainPtr, occurrence: Occurrence, sink: *mut c_void) {
    // SAFETY: the domain lives until the callback returns, and owns its name.
    let (name, id) = unsafe { (sys::virDomainGetName(domain), sys::virDomainGetID(domain)) };
    if name.is_null() {
        return;
    }
    // SAFETY: a C string owned by the domain; the sink we registered.
    let (name, sink) = unsafe { (CStr::from_ptr(name), &*sink.cast::<Sink>()) };
    let vm = name.to_string_lossy().into_owned().as_str().into();
    // (unsigned)-1 is libvirt's way of saying that it is off.
    let id = (id != u32::MAX).then_some(id);
    sink.worker.hear(FromLibvirt::Event { connection: sink.connection, vm, id, occurrence });
}
