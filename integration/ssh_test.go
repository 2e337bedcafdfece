package integration

import (
	"archive/tar"
	"bytes"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
)

// ssh returns a command line that logs in to a VM after startSSHD, with the configuration that
// `banger ssh-config` prints. A command may follow.
func (d *daemon) ssh(t *testing.T, vm string) []string {
	t.Helper()
	config, err := d.client("ssh-config").Output()
	must(t, err)
	path := filepath.Join(filepath.Dir(d.mount), "ssh_config")
	program := filepath.Join(bin, "banger")
	text := strings.ReplaceAll(string(config), "ProxyCommand banger", "ProxyCommand "+program)
	must(t, os.WriteFile(path, []byte(text), 0o600))
	return []string{"ssh", "-q", "-F", path, "-i", d.loginKey(), "-o", "BatchMode=yes", vm + ".vm"}
}

// loginKey is the private key that startSSHD lets in.
func (d *daemon) loginKey() string { return filepath.Join(filepath.Dir(d.mount), "login_key") }

// startSSHD starts an ssh server on port 22 of a healthy guest of the built-in image. It sends
// Debian's dropbear, scp and their libraries through the agent. The server has the VM's host key
// and accepts loginKey.
func startSSHD(t *testing.T, d *daemon, vm string) {
	t.Helper()
	if _, err := os.Stat(d.loginKey()); err != nil {
		cmd := exec.Command("ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", d.loginKey())
		if out, err := cmd.CombinedOutput(); err != nil {
			t.Fatalf("ssh-keygen: %v\n%s", err, out)
		}
	}
	public, err := os.ReadFile(d.loginKey() + ".pub")
	must(t, err)
	must(t, write(d.path(vm, "authorized_keys"), string(public)))
	id, err := read(d.path(vm, "id"))
	must(t, err)
	hostKey := filepath.Join(t.TempDir(), "host_key")
	from := filepath.Join(d.state, "vms", strings.TrimSpace(id), "ssh_host_ed25519_key")
	convert := exec.Command("dropbearconvert", "openssh", "dropbear", from, hostKey)
	if out, err := convert.CombinedOutput(); err != nil {
		t.Fatalf("dropbearconvert: %v\n%s", err, out)
	}
	files := map[string]string{"etc/dropbear_key": hostKey}
	for _, name := range []string{"dropbear", "scp"} {
		program, err := exec.LookPath(name)
		if err != nil {
			t.Fatalf("%v: apt install dropbear-bin openssh-client", err)
		}
		files["bin/"+name] = program
		out, err := exec.Command("ldd", program).Output()
		must(t, err)
		for _, word := range strings.Fields(string(out)) {
			if strings.HasPrefix(word, "/") {
				files[word[1:]] = word
			}
		}
	}
	cmd := d.client("exec", "-i", vm, "--", "tar", "x", "-C", "/")
	cmd.Stdin = bytes.NewReader(tarOf(t, files))
	if out, err := cmd.CombinedOutput(); err != nil {
		t.Fatalf("tar: %v\n%s", err, out)
	}
	d.inGuest(t, vm, "dropbear -r /etc/dropbear_key -p 22 -P /run/dropbear.pid")
	if _, err := read(d.path(vm, "wait", "tcp", "22")); err != nil {
		t.Fatal(err)
	}
}

// tarOf packs files of this machine, all of them programs, under other names.
func tarOf(t *testing.T, files map[string]string) []byte {
	t.Helper()
	var b bytes.Buffer
	w := tar.NewWriter(&b)
	for name, path := range files {
		text, err := os.ReadFile(path)
		must(t, err)
		err = w.WriteHeader(&tar.Header{Name: name, Mode: 0o700, Size: int64(len(text))})
		if err == nil {
			_, err = w.Write(text)
		}
		must(t, err)
	}
	must(t, w.Close())
	return b.Bytes()
}

// sshGuest starts a VM, web, with an ssh server. It returns the host and the options that ssh(1)
// and scp(1) need.
func sshGuest(t *testing.T, memory string) (d *daemon, host string, options []string) {
	t.Helper()
	needRealVMs(t)
	d = testDaemon(t, "qemu")
	must(t, os.Mkdir(d.path("web"), 0o755))
	startFor(t, d, "web", memory)
	startSSHD(t, d, "web")
	address, err := read(d.path("web", "address"))
	must(t, err)
	options = []string{"-q", "-i", d.loginKey(), "-o", "BatchMode=yes",
		"-o", "StrictHostKeyChecking=no", "-o", "UserKnownHostsFile=/dev/null"}
	return d, "root@" + strings.TrimSpace(address), options
}
