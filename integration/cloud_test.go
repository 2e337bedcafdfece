package integration

import (
	"crypto/sha256"
	"encoding/hex"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"

	"github.com/rogpeppe/go-internal/testscript"
)

// cloudDisk gives the path of the suite's cloud image. It is made once for each recipe and kept in .cache.
func cloudDisk() (string, error) {
	recipe := filepath.Join(module, "integration", "testdata", "clouddisk.sh")
	text, err := os.ReadFile(recipe)
	if err != nil {
		return "", err
	}
	sum := sha256.Sum256(text)
	dir := filepath.Join(module, ".cache", "test")
	path := filepath.Join(dir, "cloud-"+hex.EncodeToString(sum[:8])+".qcow2")
	if _, err := os.Stat(path); err == nil {
		return path, nil
	}
	if err := os.MkdirAll(dir, 0o755); err != nil {
		return "", err
	}
	tmp := path + ".new"
	defer os.Remove(tmp)
	// Debian's packages are not reached from the suite's own namespace.
	outside := fmt.Sprintf("/proc/%d/ns/net", os.Getppid())
	if out, err := exec.Command("nsenter", "--net="+outside, "sh", recipe, tmp).CombinedOutput(); err != nil {
		return "", fmt.Errorf("cannot make a cloud image (make test-deps): %w\n%s", err, out)
	}
	return path, os.Rename(tmp, path)
}

// cloudDiskCmd copies the suite's cloud image to where the script wants it.
func cloudDiskCmd(ts *testscript.TestScript, neg bool, args []string) {
	if neg || len(args) != 1 {
		ts.Fatalf("usage: clouddisk FILE")
	}
	path, err := cloudDisk()
	ts.Check(err)
	ts.Check(ts.Exec("cp", path, ts.MkAbs(args[0])))
}
