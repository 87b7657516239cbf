# Debian's own cloud image with Ballast's guest agent in it, by Packer and QEMU. See README.md beside this file; in a
# template of your own, the two provisioners are all that Ballast needs.

variable "image" {
  description = "The image to start from: an address or a path."
  default     = "https://cloud.debian.org/images/cloud/bookworm/latest/debian-12-genericcloud-amd64.qcow2"
}

variable "image_checksum" {
  description = "Its checksum."
  default     = "file:https://cloud.debian.org/images/cloud/bookworm/latest/SHA512SUMS"
}

variable "ballast_guest" {
  description = "The archive that `make bundle` in Ballast's source makes."
  default     = "ballast-guest.tar"
}

variable "seed" {
  description = "A cloud-init seed that lets Packer in: README.md says how to make one."
  default     = "seed.iso"
}

variable "ssh_key" {
  description = "The key that the seed lets in."
  default     = "packer-key"
}

source "qemu" "debian" {
  iso_url          = var.image
  iso_checksum     = var.image_checksum
  disk_image       = true
  format           = "qcow2"
  disk_interface   = "virtio"
  net_device       = "virtio-net"
  memory           = 1024
  headless         = true
  output_directory = "output"
  vm_name          = "debian-ballast.qcow2"
  # This replaces Packer's own drives: both are named.
  qemuargs = [
    ["-drive", "file=output/debian-ballast.qcow2,if=virtio,cache=writeback,discard=unmap,format=qcow2"],
    ["-drive", "file=${var.seed},if=virtio,format=raw,readonly=on"],
  ]
  ssh_username         = "debian"
  ssh_private_key_file = var.ssh_key
  ssh_timeout          = "10m"
  # Every machine made from the image is to find out anew who it is, and nobody keeps Packer's key.
  shutdown_command = "sudo rm -f /home/debian/.ssh/authorized_keys && sudo cloud-init clean --logs && sudo truncate -s 0 /etc/machine-id && sudo poweroff"
}

build {
  sources = ["source.qemu.debian"]

  provisioner "file" {
    source      = var.ballast_guest
    destination = "/tmp/ballast-guest.tar"
  }

  provisioner "shell" {
    inline = [
      "sudo tar --extract --no-same-owner --file /tmp/ballast-guest.tar --directory /",
      "rm /tmp/ballast-guest.tar",
      "sudo systemctl daemon-reload",
      "systemctl is-enabled ballast-guest",
    ]
  }
}
