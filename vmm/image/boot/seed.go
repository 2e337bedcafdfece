package boot

import (
	"bufio"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/netip"
	"os"

	"banger/vmm"
	"banger/vmm/guest"

	"github.com/cavaliergopher/cpio"
)

// agentLimit bounds the agent's program, in bytes.
const agentLimit = 64 << 20

// userData makes cloud-init run installScript at each boot, in its first stage that can. The
// interface is configured at each boot because `net` may have changed. The agent writes ssh's host
// key, so cloud-init must not delete it. It makes missing keys of other kinds, so those of the
// image are removed once per instance-id. A VM of an earlier version, with an agent and one
// instance, keeps its keys.
const userData = `#cloud-config
bootcmd:
- [cloud-init-per, instance, banger-host-keys, sh, -c, 'test -e /usr/local/sbin/banger-agent &&
  test $(ls /var/lib/cloud/instances | wc -l) -lt 2 && exit; cd /etc/ssh && ls |
  grep "^ssh_host_.*_key" | grep -v ed25519 | xargs -r rm -f']
` + "- [sh, -c, 'm=/run/banger-seed; mkdir -p $m; mount -t iso9660 -o ro LABEL=cidata $m && " +
	"{ sh $m/banger-install $m; umount $m; }']" + `
ssh_deletekeys: false
updates:
  network:
    when: [boot-new-instance, boot]
`

// installScript installs the agent in the guest, or replaces an older one, and starts it. systemd
// gets a unit, so that the next boot need not wait for cloud-init. A manager that does not find the
// new unit is reloaded.
const installScript = `#!/bin/sh
# banger's agent, installed from the VM's seed disk, which is mounted at $1.
set -eu
agent=/usr/local/sbin/banger-agent
unit=/etc/systemd/system/banger-agent.service
verb=start
same() { cmp -s "$1" "$2"; }
if ! same "$1/banger-agent" $agent; then
	mkdir -p /usr/local/sbin
	cp "$1/banger-agent" $agent.new
	chmod 755 $agent.new
	mv $agent.new $agent
	verb=restart
fi
if [ ! -d /run/systemd/system ]; then
	pidof banger-agent >/dev/null || setsid $agent </dev/null >/dev/null 2>&1 &
	exit
fi
if ! same "$1/banger-agent.service" $unit; then
	cp "$1/banger-agent.service" $unit
	chmod 644 $unit
	mkdir -p /etc/systemd/system/sysinit.target.wants
	ln -sf $unit /etc/systemd/system/sysinit.target.wants/
fi
systemctl --no-block $verb banger-agent.service || {
	systemctl daemon-reload
	systemctl --no-block $verb banger-agent.service
}
`

// agentUnit starts the agent after cloud-init-local, which names the interface and could not once
// the agent has brought it up. The agent ends while its port is missing; systemd then starts it
// again.
const agentUnit = `[Unit]
Description=banger's agent
DefaultDependencies=no
After=local-fs.target cloud-init-local.service
Conflicts=shutdown.target
Before=shutdown.target
StartLimitIntervalSec=0

[Service]
ExecStart=/usr/local/sbin/banger-agent
Restart=always
RestartSec=1
OOMScoreAdjust=-900

[Install]
WantedBy=sysinit.target
`

// Seed returns an ISO 9660 disk for cloud-init's NoCloud, which configures the network of a VM and
// installs the agent. id identifies the VM: cloud-init configures a guest anew when it changes.
func Seed(agent []byte, id string, mode vmm.NetMode, c guest.Config) ([]byte, error) {
	// JSON is YAML.
	meta, err := json.Marshal(map[string]string{"instance-id": id, "local-hostname": c.Hostname})
	if err != nil {
		return nil, err
	}
	network, err := json.Marshal(networkConfig(mode, c))
	if err != nil {
		return nil, err
	}
	return packISO("cidata", []isoFile{
		{"banger-agent", agent},
		{"banger-agent.service", []byte(agentUnit)},
		{"banger-install", []byte(installScript)},
		{"meta-data", append(meta, '\n')},
		{"network-config", append(network, '\n')},
		{"user-data", []byte(userData)},
	}), nil
}

// Agent returns the agent's program, which is the init of the built-in initramfs.
func Agent(initramfs string) ([]byte, error) {
	f, err := os.Open(initramfs)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	for r := cpio.NewReader(bufio.NewReaderSize(f, 1<<20)); ; {
		h, err := r.Next()
		if errors.Is(err, io.EOF) {
			return nil, fmt.Errorf("no init in %s", initramfs)
		}
		if err != nil {
			return nil, fmt.Errorf("%s: %w", initramfs, err)
		}
		if h.Name != "init" {
			continue
		}
		if h.Size > agentLimit {
			return nil, fmt.Errorf("init of %s is longer than %d bytes", initramfs, agentLimit)
		}
		return io.ReadAll(r)
	}
}

// Network configuration of cloud-init, version 2 (its documentation, "Networking Config Version
// 2").
type (
	netConfig struct {
		Version   int                  `json:"version,omitempty"`
		Ethernets map[string]netDevice `json:"ethernets,omitempty"`
		Config    string               `json:"config,omitempty"`
	}
	netDevice struct {
		Match     map[string]string       `json:"match"`
		SetName   string                  `json:"set-name"`
		DHCP4     bool                    `json:"dhcp4"`
		Addresses []netip.Prefix          `json:"addresses,omitempty"`
		Routes    []netRoute              `json:"routes,omitempty"`
		DNS       map[string][]netip.Addr `json:"nameservers,omitempty"`
		MTU       int                     `json:"mtu,omitempty"`
	}
	netRoute struct {
		To  netip.Prefix `json:"to"`
		Via netip.Addr   `json:"via"`
	}
)

// networkConfig returns the configuration that the agent will apply as well. With it the guest's
// own network manager counts the guest as online at once.
func networkConfig(mode vmm.NetMode, c guest.Config) netConfig {
	if mode == vmm.NetNone {
		return netConfig{Config: "disabled"}
	}
	d := netDevice{Match: map[string]string{"macaddress": c.MAC}, SetName: "eth0", MTU: c.MTU}
	for _, a := range []struct {
		address netip.Prefix
		gateway netip.Addr
	}{{c.Address, c.Gateway}, {c.Address6, c.Gateway6}} {
		if !a.address.IsValid() {
			continue
		}
		d.Addresses = append(d.Addresses, a.address)
		if a.gateway.IsValid() {
			any := netip.PrefixFrom(netip.IPv4Unspecified(), 0)
			if a.gateway.Is6() {
				any = netip.PrefixFrom(netip.IPv6Unspecified(), 0)
			}
			d.Routes = append(d.Routes, netRoute{any, a.gateway})
		}
	}
	if len(c.DNS) > 0 {
		d.DNS = map[string][]netip.Addr{"addresses": c.DNS}
	}
	d.DHCP4 = len(d.Addresses) == 0
	return netConfig{Version: 2, Ethernets: map[string]netDevice{"eth0": d}}
}
