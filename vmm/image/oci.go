package image

import (
	"archive/tar"
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"path"
	"runtime"
	"strings"

	"banger/internal/host"
	"banger/vmm"

	v1 "github.com/google/go-containerregistry/pkg/v1"
	"github.com/google/go-containerregistry/pkg/v1/types"
)

const (
	maxLayers   = 512
	maxJSON     = 4 << 20 // bytes of an index, a manifest or a configuration
	maxArchive  = 100_000 // files of an archive of images
	maxIndexing = 3       // indexes of indexes
	maxNames    = 4 << 20 // bytes of the names in an archive of images
)

// platform is what images for several are taken for.
var platform = v1.Platform{OS: "linux", Architecture: runtime.GOARCH}

// ociImage is an image as its configuration and layers, lowest first.
type ociImage struct {
	digest string // of its manifest; of its configuration where it has none
	config *v1.ConfigFile
	layers []*layer
}

// program is what the image runs.
func (i *ociImage) program() *vmm.Program {
	c := &i.config.Config
	return &vmm.Program{
		Args: append(append([]string(nil), c.Entrypoint...), c.Cmd...),
		Env:  c.Env, Dir: c.WorkingDir, User: c.User, StopSignal: c.StopSignal,
	}
}

// plan is what is left to do with an image whose layers can be read. progress goes on from begin.
func (i *ociImage) plan(j *job, begin float64) (*plan, error) {
	if i.config.OS != "" && i.config.OS != platform.OS || i.config.Architecture != "" && i.config.Architecture != platform.Architecture {
		return nil, fmt.Errorf("it is for %.20s/%.20s, this host needs %s", i.config.OS, i.config.Architecture, platform.String())
	}
	if len(i.layers) == 0 || len(i.layers) > maxLayers {
		return nil, fmt.Errorf("it has %d layers, 1 to %d are possible", len(i.layers), maxLayers)
	}
	if len(i.config.RootFS.DiffIDs) != len(i.layers) {
		return nil, fmt.Errorf("its configuration speaks of %d layers, it has %d", len(i.config.RootFS.DiffIDs), len(i.layers))
	}
	program := i.program()
	text, err := json.Marshal(program)
	if err != nil {
		return nil, err
	}
	parts := [][]byte{[]byte("oci"), []byte(recipeRoot), []byte(i.digest), text, j.owner()}
	for n, l := range i.layers {
		l.diffID = i.config.RootFS.DiffIDs[n].String()
		parts = append(parts, []byte(l.diffID))
	}
	return &plan{
		key: digest(parts...),
		make: func(ctx context.Context, dir string) (*manifest, error) {
			m, err := j.makeRoot(ctx, dir, i.layers, program, begin)
			if err == nil {
				m.Digest = i.digest
			}
			return m, err
		},
	}, nil
}

// archive is a directory, or a tar as if it were one.
type archive struct {
	local *local
	files map[string]section // of a tar
}

// section is where a file's content stands in a tar.
type section struct {
	at, size int64
	link     string // instead: another name
}

// openArchive reads the names of a tar.
func openArchive(ctx context.Context, l *local) (*archive, error) {
	a := &archive{local: l}
	if l.dir {
		return a, nil
	}
	a.files = map[string]section{}
	head := make([]byte, 4)
	if _, err := l.file.ReadAt(head, 0); err == nil && (bytes.HasPrefix(head, []byte("\x1f\x8b")) || bytes.HasPrefix(head, []byte("\x28\xb5\x2f\xfd"))) {
		return nil, errors.New("it is compressed as a whole; unpack it first (its layers may be compressed)")
	}
	f := l.file
	if _, err := f.Seek(0, io.SeekStart); err != nil {
		return nil, err
	}
	t := tar.NewReader(f) // which seeks over what it does not read
	names := 0
	for n := 0; ; n++ {
		h, err := t.Next()
		if err == io.EOF {
			return a, nil
		}
		if err == nil && n >= maxArchive {
			err = fmt.Errorf("more than %d files", maxArchive)
		}
		if err == nil {
			names += len(h.Name) + len(h.Linkname)
			switch {
			case names > maxNames:
				err = fmt.Errorf("names of more than %d bytes", maxNames)
			case host.Sparse(h):
				err = errSparse
			}
		}
		if err = errors.Join(err, ctx.Err()); err != nil {
			return nil, fmt.Errorf("not an archive of an image: %w", err)
		}
		name := path.Clean("/" + h.Name)
		switch h.Typeflag {
		case tar.TypeReg:
			at, err := f.Seek(0, io.SeekCurrent)
			if err != nil {
				return nil, err
			}
			a.files[name] = section{at: at, size: h.Size}
		case tar.TypeLink:
			a.files[name] = section{link: path.Clean("/" + h.Linkname)}
		case tar.TypeSymlink:
			a.files[name] = section{link: path.Clean(path.Join("/", path.Dir(name), h.Linkname))}
		}
	}
}

// open gives a file of the archive and its size.
func (a *archive) open(name string) (*piece, int64, error) {
	if a.local.dir {
		f, err := a.local.open(name)
		if err != nil {
			return nil, 0, err
		}
		fi, err := f.Stat()
		if err != nil {
			f.Close()
			return nil, 0, err
		}
		return newPiece(f, 0, fi.Size(), true), fi.Size(), nil
	}
	s, ok := a.files[path.Clean("/"+name)]
	if ok && s.link != "" {
		s, ok = a.files[s.link]
	}
	if !ok || s.link != "" {
		return nil, 0, fmt.Errorf("there is no %.200q in it", name)
	}
	return newPiece(a.local.file, s.at, s.size, false), s.size, nil
}

// read gives a small file of the archive.
func (a *archive) read(name string) ([]byte, error) {
	f, size, err := a.open(name)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	if size > maxJSON {
		return nil, fmt.Errorf("%.200q has %d bytes, %d are allowed", name, size, maxJSON)
	}
	return io.ReadAll(io.LimitReader(f, maxJSON))
}

// blob reads a small blob and checks it.
func (a *archive) blob(d *v1.Descriptor) ([]byte, error) {
	b, err := a.read(blobPath(d.Digest))
	if err != nil {
		return nil, err
	}
	if got := sum(b); got != d.Digest.String() {
		return nil, fmt.Errorf("it is damaged: blob %s has the digest %s", d.Digest, got)
	}
	return b, nil
}

func blobPath(h v1.Hash) string { return "blobs/" + h.Algorithm + "/" + h.Hex }

func sum(b []byte) string {
	h := sha256.Sum256(b)
	return "sha256:" + hex.EncodeToString(h[:])
}

// layer gives a layer of the archive. digest may be empty.
func (a *archive) layer(name, digest string) (*layer, error) {
	f, size, err := a.open(name)
	if err != nil {
		return nil, err
	}
	f.Close()
	return &layer{size: size, digest: digest, open: func() (io.ReadCloser, error) {
		p, _, err := a.open(name)
		if err != nil {
			return nil, err
		}
		return p, nil
	}}, nil
}

// planOCI reads an OCI image layout (image-spec, image-layout.md).
func planOCI(ctx context.Context, j *job) (*plan, error) {
	a, err := openArchive(ctx, j.local)
	if err != nil {
		return nil, err
	}
	b, err := a.read("index.json")
	if err != nil {
		return nil, fmt.Errorf("not an OCI image layout: %w", err)
	}
	m, digest, err := a.manifest(b, 0)
	if err != nil {
		return nil, err
	}
	config, err := a.blob(&m.Config)
	if err != nil {
		return nil, err
	}
	i := &ociImage{digest: digest}
	if i.config, err = v1.ParseConfigFile(bytes.NewReader(config)); err != nil {
		return nil, fmt.Errorf("its configuration cannot be read: %w", err)
	}
	for _, d := range m.Layers {
		l, err := a.layer(blobPath(d.Digest), d.Digest.String())
		if err != nil {
			return nil, err
		}
		i.layers = append(i.layers, l)
	}
	return i.plan(j, 0)
}

// manifest finds the one image for this platform in an index.
func (a *archive) manifest(index []byte, depth int) (*v1.Manifest, string, error) {
	list, err := v1.ParseIndexManifest(bytes.NewReader(index))
	if err != nil {
		return nil, "", fmt.Errorf("its index cannot be read: %w", err)
	}
	var fit []v1.Descriptor
	for _, d := range list.Manifests {
		if d.Platform == nil || d.Platform.Satisfies(platform) || d.MediaType.IsIndex() {
			fit = append(fit, d)
		}
	}
	switch {
	case len(fit) == 0:
		return nil, "", fmt.Errorf("it has no image for %s", platform.String())
	case len(fit) > 1:
		return nil, "", fmt.Errorf("it has %d images that fit; give one that has one", len(fit))
	}
	d := fit[0]
	b, err := a.blob(&d)
	if err != nil {
		return nil, "", err
	}
	switch {
	case d.MediaType.IsIndex() && depth < maxIndexing:
		return a.manifest(b, depth+1)
	case d.MediaType != types.OCIManifestSchema1 && d.MediaType != types.DockerManifestSchema2:
		return nil, "", fmt.Errorf("its image is a %.100q, which is not understood", d.MediaType)
	}
	m, err := v1.ParseManifest(bytes.NewReader(b))
	if err != nil {
		return nil, "", fmt.Errorf("its manifest cannot be read: %w", err)
	}
	return m, d.Digest.String(), nil
}

// planDockerArchive reads what `docker save` writes: manifest.json names the configuration and the layers.
func planDockerArchive(ctx context.Context, j *job) (*plan, error) {
	a, err := openArchive(ctx, j.local)
	if err != nil {
		return nil, err
	}
	b, err := a.read("manifest.json")
	if err != nil {
		return nil, fmt.Errorf("not what docker save writes: %w", err)
	}
	var images []struct {
		Config string
		Layers []string
	}
	if err := json.Unmarshal(b, &images); err != nil {
		return nil, fmt.Errorf("its manifest.json cannot be read: %w", err)
	}
	if len(images) != 1 {
		return nil, fmt.Errorf("it has %d images; give one that has one", len(images))
	}
	if images[0].Config == "" {
		return nil, errors.New("its manifest.json names no configuration")
	}
	config, err := a.read(images[0].Config)
	if err != nil {
		return nil, err
	}
	i := &ociImage{digest: sum(config)}
	// Its name is its digest: HEX.json, blobs/sha256/HEX, or sha256:HEX where crane wrote it.
	if hex := strings.TrimPrefix(strings.TrimSuffix(path.Base(images[0].Config), ".json"), "sha256:"); "sha256:"+hex != i.digest {
		return nil, fmt.Errorf("it is damaged: configuration %.100q has the digest %s", images[0].Config, i.digest)
	}
	if i.config, err = v1.ParseConfigFile(bytes.NewReader(config)); err != nil {
		return nil, fmt.Errorf("its configuration cannot be read: %w", err)
	}
	for _, name := range images[0].Layers {
		l, err := a.layer(name, "")
		if err != nil {
			return nil, err
		}
		i.layers = append(i.layers, l)
	}
	return i.plan(j, 0)
}

// planRootfs reads a tar of a root file system; what it has is found out by reading it once.
func planRootfs(ctx context.Context, j *job) (*plan, error) {
	if j.local.dir {
		return nil, errors.New("it is a directory, not a tar")
	}
	h := sha256.New()
	fi, err := j.local.file.Stat()
	if err != nil {
		return nil, err
	}
	whole := io.NewSectionReader(j.local.file, 0, fi.Size())
	if _, err := io.Copy(h, host.NewReader(ctx, whole, nil)); err != nil {
		return nil, err
	}
	sum := "sha256:" + hex.EncodeToString(h.Sum(nil))
	return &plan{
		key: digest([]byte("rootfs"), []byte(recipeRoot), []byte(sum), j.owner()),
		make: func(ctx context.Context, dir string) (*manifest, error) {
			l := &layer{size: fi.Size(), digest: sum, open: func() (io.ReadCloser, error) {
				return newPiece(j.local.file, 0, fi.Size(), false), nil
			}}
			m, err := j.makeRoot(ctx, dir, []*layer{l}, nil, 0)
			if err == nil {
				m.Digest = sum
			}
			return m, err
		},
	}, nil
}
