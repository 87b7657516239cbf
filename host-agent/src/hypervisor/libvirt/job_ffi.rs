//! Which job libvirt runs on a domain. Crate `virt` has the call, but makes a `Vec` of the null pointer that libvirt
//! returns when there is none; so this is the second of the three modules of this crate where `unsafe` is allowed.
#![allow(unsafe_code)]

use std::ffi::c_int;
use std::ptr;
use virt::domain::Domain;
use virt::error::Error;
use virt::sys;

/// Whether libvirt is at something with this running domain that lets nothing be changed meanwhile: a migration, a save, a
/// dump, a snapshot. A change then waits for it, up to 30 s, and with it this connection's thread (libvirt,
/// src/hypervisor/domain_job.c). A backup lets changes pass, and may run for hours.
pub(super) fn is_busy(domain: &Domain) -> Result<bool, Error> {
    let (mut kind, mut parameters, mut count): (c_int, _, c_int) = (0, ptr::null_mut(), 0);
    // SAFETY: the domain is held by our caller; libvirt fills in the rest, and allocates the parameters.
    let result = unsafe { sys::virDomainGetJobStats(domain.as_ptr(), &mut kind, &mut parameters, &mut count, 0) };
    if result == -1 {
        return Err(Error::last_error());
    }
    let mut operation: c_int = 0;
    if !parameters.is_null() {
        // SAFETY: the parameters are as many as libvirt said, the name is a C string; they are freed once, here.
        unsafe {
            let name = sys::VIR_DOMAIN_JOB_OPERATION.as_ptr();
            if sys::virTypedParamsGetInt(parameters, count, name, &mut operation) != 1 {
                operation = 0;
            }
            sys::virTypedParamsFree(parameters, count);
        }
    }
    let runs = matches!(kind as sys::virDomainJobType, sys::VIR_DOMAIN_JOB_BOUNDED | sys::VIR_DOMAIN_JOB_UNBOUNDED);
    Ok(runs && operation as sys::virDomainJobOperation != sys::VIR_DOMAIN_JOB_OPERATION_BACKUP)
}
