package integration

import (
	"fmt"
	"os/exec"
	"path/filepath"
	"sync"

	"github.com/rogpeppe/go-internal/testscript"
)

// cloudDisk returns the path of the suite's cloud image, which is made of the suite's Debian.
var cloudDisk = sync.OnceValues(func() (string, error) {
	debian, err := debianTar()
	if err != nil {
		return "", err
	}
	recipe := filepath.Join(module, "integration", "testdata", "clouddisk.sh")
	return kept("cloud", readFile(recipe)+debian, func(path string) error {
		args := append(outside(), "unshare", "--mount", "sh", recipe, debian, path)
		if out, err := exec.Command(args[0], args[1:]...).CombinedOutput(); err != nil {
			return fmt.Errorf("cannot make a cloud image (make test-deps): %w\n%s", err, out)
		}
		return nil
	})
})

// cloudDiskCmd copies the suite's cloud image to a file of the script.
func cloudDiskCmd(ts *testscript.TestScript, neg bool, args []string) {
	if neg || len(args) != 1 {
		ts.Fatalf("usage: clouddisk FILE")
	}
	path, err := cloudDisk()
	ts.Check(err)
	ts.Check(ts.Exec("cp", path, ts.MkAbs(args[0])))
}
