package doctor

import (
	"context"
	"errors"
	"io/fs"
	"os"
	"strings"
	"syscall"
)

// nftables makes tables of the daemon's kinds.
func (h *Host) nftables(context.Context) finding {
	err := h.Nft()
	switch {
	case err == nil:
		return ok("tables of inet and bridge can be made")
	case errors.Is(err, errNoNamespace):
		return warn("nft list tables", "not tried: %v", err)
	case errors.Is(err, fs.ErrPermission):
		return fail("run bangerd with CAP_NET_ADMIN", "no table of nftables can be made: %v", err)
	}
	return fail("modprobe -a nf_tables nft_masq nf_tables_bridge",
		"no table of nftables can be made: %v", err)
}

// bridge returns the name of the guests' bridge.
func (h *Host) bridge() string { return h.setting("bridge", "banger0") }

// firewalld looks whether it runs and lets the bridge through, as docs/network.md has it.
func (h *Host) firewalld(context.Context) finding {
	pid := strings.TrimSpace(h.read("/run/firewalld.pid"))
	if pid == "" || !h.exists("/proc/"+pid) {
		return ok("does not run")
	}
	zones, _ := fs.Glob(os.DirFS(h.path("/etc/firewalld")), "zones/*.xml")
	for _, zone := range zones {
		if strings.Contains(h.read("/etc/firewalld/"+zone), `<interface name="`+h.bridge()+`"/>`) {
			return ok("runs, and has %s in a zone", h.bridge())
		}
	}
	return warn("firewall-cmd --permanent --new-zone=banger && "+
		"firewall-cmd --permanent --zone=banger --set-target=ACCEPT && "+
		"firewall-cmd --permanent --zone=banger --add-interface="+h.bridge()+" && "+
		"firewall-cmd --reload", "runs, and drops what guests send: %s is in no zone", h.bridge())
}

// ufw looks whether it is on and lets the bridge through.
func (h *Host) ufw(context.Context) finding {
	if !hasLine(h.read("/etc/ufw/ufw.conf"), "ENABLED=yes") {
		return ok("is not on")
	}
	bridge := h.bridge()
	rules := h.read("/etc/ufw/user.rules")
	if strings.Contains(rules, " -i "+bridge+" ") || strings.Contains(rules, " in_"+bridge) {
		return ok("is on, and has rules for %s", bridge)
	}
	return warn("ufw route allow in on "+bridge+" && ufw route allow out on "+bridge+
		" && ufw allow in on "+bridge+" to any port 53", "is on, and drops what guests send")
}

// docker looks whether its chain of the administrator's lets the bridge through.
func (h *Host) docker(ctx context.Context) finding {
	if !h.exists("/run/docker.sock") && !h.exists("/run/docker.pid") {
		return ok("does not run")
	}
	bridge := h.bridge()
	if iptables := h.Find("iptables"); iptables != "" {
		rules, err := h.run(ctx, iptables, "-w", "1", "-S", "DOCKER-USER")
		if err == nil && hasLine(rules, "-A DOCKER-USER -i "+bridge+" -j ACCEPT") {
			return ok("runs, and lets %s through", bridge)
		}
	}
	return warn("iptables -I DOCKER-USER -i "+bridge+" -j ACCEPT && "+
		"iptables -I DOCKER-USER -o "+bridge+" -j ACCEPT",
		"runs, and drops what guests send beyond the host")
}

// resolved looks whether the host finds the names of VMs.
func (h *Host) resolved(context.Context) finding {
	if file := h.setting("hosts_file", "off"); file != "off" {
		return ok("the daemon keeps names of VMs in %s", file)
	}
	if h.setting("dns", "on") == "off" {
		return ok("names are off")
	}
	remedy := h.configure(`hosts_file = "/etc/hosts"`)
	if err := h.Dial(h.path("/run/systemd/resolve/io.systemd.Resolve")); err != nil {
		if !errors.Is(err, fs.ErrNotExist) && !errors.Is(err, syscall.ECONNREFUSED) {
			return warn(remedy, "systemd-resolved cannot be asked: %v", reason(err))
		}
		return warn(remedy, "systemd-resolved does not run: the host finds no name of a VM")
	}
	hosts := strings.Join(fields(h.read("/etc/nsswitch.conf"), "hosts:"), " ")
	stub := hasLine(h.read("/etc/resolv.conf"), "nameserver 127.0.0.53", "nameserver 127.0.0.54")
	if !stub && !strings.Contains(hosts, "resolve") {
		return warn("ln -sf ../run/systemd/resolve/stub-resolv.conf /etc/resolv.conf",
			"systemd-resolved runs, but /etc/resolv.conf asks another resolver: "+
				"the host finds no name of a VM")
	}
	return ok("systemd-resolved finds names of VMs")
}
