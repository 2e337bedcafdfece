package boot

import (
	"bytes"
	"encoding/binary"
	"net/netip"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"banger/vmm"
	"banger/vmm/guest"
)

// readISO gives the files of a disk by the means of ECMA-119, the other way round than packISO.
func readISO(t *testing.T, disk []byte) (volume string, files map[string]string) {
	t.Helper()
	d := disk[16*2048:]
	if string(d[1:6]) != "CD001" || d[0] != 1 || len(disk) != int(binary.LittleEndian.Uint32(d[80:]))*2048 {
		t.Fatalf("no volume descriptor of %d bytes: %q", len(disk), d[:88])
	}
	root := d[156:190]
	extent := func(r []byte) []byte {
		at, size := binary.LittleEndian.Uint32(r[2:]), binary.BigEndian.Uint32(r[14:])
		if at != binary.BigEndian.Uint32(r[6:]) || size != binary.LittleEndian.Uint32(r[10:]) {
			t.Fatalf("the byte orders of %v differ", r)
		}
		return disk[int(at)*2048:][:size]
	}
	files = make(map[string]string)
	for dir := extent(root); dir[0] != 0; dir = dir[dir[0]:] {
		if name := string(dir[33 : 33+dir[32]]); dir[25] == 0 {
			files[strings.TrimSuffix(name, ";1")] = string(extent(dir))
		}
	}
	return strings.TrimRight(string(d[40:72]), " "), files
}

func TestSeed(t *testing.T) {
	initramfs, err := packInitramfs([]entry{dirEntry("bin", 0o755), fileEntry("init", 0o755, bytes.Repeat([]byte("agent"), 1000))})
	if err != nil {
		t.Fatal(err)
	}
	path := filepath.Join(t.TempDir(), "initramfs")
	if err := os.WriteFile(path, initramfs, 0o600); err != nil {
		t.Fatal(err)
	}
	agent, err := Agent(path)
	if err != nil {
		t.Fatal(err)
	}
	c := guest.Config{Hostname: "web", MAC: "02:00:00:00:00:07", MTU: 1400,
		Address: netip.MustParsePrefix("172.30.0.2/16"), Gateway: netip.MustParseAddr("172.30.0.1"),
		Address6: netip.MustParsePrefix("fd00::2/64"), Gateway6: netip.MustParseAddr("fd00::1"),
		DNS: []netip.Addr{netip.MustParseAddr("172.30.0.1")}}
	for _, x := range []struct {
		mode    vmm.NetMode
		config  guest.Config
		network string
	}{
		{vmm.NetBridge, c, `{"version":2,"ethernets":{"eth0":{"match":{"macaddress":"02:00:00:00:00:07"},"set-name":"eth0","dhcp4":false,` +
			`"addresses":["172.30.0.2/16","fd00::2/64"],"routes":[{"to":"0.0.0.0/0","via":"172.30.0.1"},{"to":"::/0","via":"fd00::1"}],` +
			`"nameservers":{"addresses":["172.30.0.1"]},"mtu":1400}}}` + "\n"},
		{vmm.NetUser, guest.Config{Hostname: "web", MAC: "02:00:00:00:00:07"},
			`{"version":2,"ethernets":{"eth0":{"match":{"macaddress":"02:00:00:00:00:07"},"set-name":"eth0","dhcp4":true}}}` + "\n"},
		{vmm.NetNone, guest.Config{Hostname: "web"}, `{"config":"disabled"}` + "\n"},
	} {
		seed, err := Seed(agent, "6a2f", x.mode, x.config)
		if err != nil {
			t.Fatal(err)
		}
		volume, files := readISO(t, seed)
		if volume != "cidata" || len(files) != 6 {
			t.Errorf("volume %q has %d files", volume, len(files))
		}
		if got := files["network-config"]; got != x.network {
			t.Errorf("%s: network-config\n%swant\n%s", x.mode, got, x.network)
		}
		if got := files["meta-data"]; got != `{"instance-id":"6a2f","local-hostname":"web"}`+"\n" {
			t.Errorf("meta-data %s", got)
		}
		if len(files["banger-agent"]) != 5000 || !strings.HasPrefix(files["user-data"], "#cloud-config\n") {
			t.Errorf("agent of %d bytes, user-data %.20q", len(files["banger-agent"]), files["user-data"])
		}
		if again, err := Seed(agent, "6a2f", x.mode, x.config); err != nil || !bytes.Equal(again, seed) {
			t.Errorf("the same arguments give other bytes: %v", err)
		}
	}
	for _, content := range []string{"", "no archive"} {
		if err := os.WriteFile(path, []byte(content), 0o600); err != nil {
			t.Fatal(err)
		}
		if _, err := Agent(path); err == nil {
			t.Errorf("an agent in %q", content)
		}
	}
}
