package machine

import (
	"context"
	"encoding/json"
	"fmt"
	"strconv"
	"strings"
	"time"

	v1 "github.com/google/go-containerregistry/pkg/v1"

	"github.com/kapernikov/osctl/pkg/health"
)

// The application of the stories: two services with a volume, web with a network of its
// own and db without any, and beside them a container that is broken from the beginning.
const (
	shopImage  = "shop:1.0"
	oldImage   = "old:1.0"
	shopVolume = "volumes/default/shop_data/_data" // below a folder of nerdctl's
	webService = "default/shop/web"
	dbService  = "default/shop/db"
)

// composeFile asks of web what its visitors see, and of db what its own program says. What
// it does not say is "restart: always": containerd's restart monitor may see a container
// that nerdctl is about to start, on a busy machine, and each spoils what the other does.
const composeFile = `name: shop
services:
  web:
    image: %[1]s
    command: ["-name", "web", "-listen", ":8080"]
    ports: ["8080:8080"]
    volumes: ["data:/data", "/usr/lib/os-release:/os-release:ro"]
    labels: {osctl.gate: required, osctl.gate.http: "http://127.0.0.1:8080/health"}
  db:
    image: %[1]s
    command: ["-name", "db"]
    network_mode: none
    volumes: ["data:/data", "/usr/lib/os-release:/os-release:ro"]
    labels: {osctl.gate.exec: '["/shop", "-ask"]'}
volumes:
  data: {}
`

// pushShop pushes the image of the services, and the same program with a health check.
func (s *Site) pushShop(ctx context.Context) error {
	const source = "./test/machine/shop"
	if err := s.pushProgram(ctx, source, shopImage, v1.Config{}); err != nil {
		return err
	}
	return s.pushProgram(ctx, source, oldImage, v1.Config{Labels: map[string]string{
		// Where nerdctl looks. Once in an hour: the story asks by itself.
		"nerdctl/healthcheck": `{"Test": ["CMD", "/shop", "-ask"], "Interval": 3600000000000, "Timeout": 60000000000, "Retries": 1}`,
	}})
}

// openShop starts the application with nerdctl compose.
func (s *Story) openShop(ctx context.Context) error {
	s.tell.Title("Open the shop")
	file := fmt.Sprintf(composeFile, s.Site.Ref(shopImage))
	_, err := s.run(ctx, fmt.Sprintf("mkdir -p /data/shop && cat >/data/shop/compose.yaml <<'END'\n%sEND\n", file)+
		"set -e; nerdctl compose -f /data/shop/compose.yaml up -d --quiet-pull 2>&1; nerdctl update --restart always shop-web-1 shop-db-1", 0)
	if err != nil {
		return err
	}
	return s.visit(ctx)
}

// shopInOrder expects that the services run, with the images that they had at first, and
// that what they keep was kept.
func (s *Story) shopInOrder(ctx context.Context) error {
	if err := s.visit(ctx); err != nil {
		return err
	}
	out, err := s.run(ctx, shopDigests, 0)
	if err != nil {
		return err
	}
	if s.shop == "" {
		s.shop = out
	}
	if out != s.shop || strings.Count(out, "sha256:") != 2 {
		return fmt.Errorf("the services run with\n%sexpected\n%s", out, s.shop)
	}
	return nil
}

// shopDigests prints each running service of the shop with the digest of its image.
const shopDigests = `for c in web db; do nerdctl ps --filter name=shop-$c-1 --format '{{.Names}} {{.Image}}' | while read -r name image; do
	echo $name $(nerdctl image inspect --mode native --format '{{.Image.Target.Digest}}' $image); done; done`

// order tells a service what to do wrong from its next start on.
func (s *Story) order(ctx context.Context, order string) error {
	_, err := s.run(ctx, fmt.Sprintf("cd /data/nerdctl/*/%s && echo '%s' >>orders", shopVolume, order), 0)
	return err
}

// breakSomething makes a container that is unhealthy, and a unit that fails.
func (s *Story) breakSomething(ctx context.Context) error {
	s.tell.Title("Something is broken already")
	if err := s.order(ctx, "* old mute"); err != nil {
		return err
	}
	const unit = "[Unit]\nDescription=Broken for ages\n[Service]\nType=oneshot\nExecStart=false\n[Install]\nWantedBy=multi-user.target\n"
	_, err := s.run(ctx, "printf '"+strings.ReplaceAll(unit, "\n", `\n`)+"' >/etc/systemd/system/ages.service; systemctl enable ages.service 2>&1; "+
		"systemctl start ages.service; systemctl is-failed ages.service", 0, "failed")
	if err != nil {
		return err
	}
	_, err = s.run(ctx, "nerdctl run -q -d --network none --name old -v shop_data:/data -v /usr/lib/os-release:/os-release:ro "+
		s.Site.Ref(oldImage)+" -name old 2>&1; nerdctl update --restart always old; nerdctl container healthcheck old; nerdctl inspect old --format '{{.State.Health.Status}}'", 0, "unhealthy")
	return err
}

// greenForGoodReasons looks at the gate that has committed 1.1: it has waited for the
// service that is late, and what was broken before did not count.
func (s *Story) greenForGoodReasons(ctx context.Context) error {
	if err := s.shopInOrder(ctx); err != nil {
		return err
	}
	if _, err := s.run(ctx, "systemctl is-failed ages.service", 0, "failed"); err != nil {
		return err
	}
	text, err := s.run(ctx, "cat /run/osctl/health.json", 0)
	if err != nil {
		return err
	}
	var report health.Report
	if err := json.Unmarshal([]byte(text), &report); err != nil {
		return err
	}
	seen := map[string]health.Check{}
	for _, c := range report.Checks {
		seen[c.Name] = c
	}
	// It held for good when it answered, and not when it ran.
	started, err := s.processStart(ctx, "shop-web-1")
	if err != nil {
		return err
	}
	if web := seen[webService]; report.Started.Add(web.Duration).Before(started.Add(lateness)) {
		return fmt.Errorf("the gate began at %v and did not wait for %s, which started at %v: %+v", report.Started, webService, started, web)
	}
	if old := seen["default/old"]; !strings.Contains(old.Seen, "neither did it answer before") {
		return fmt.Errorf("the gate saw %+v", old)
	}
	if units := seen["failed units"]; !strings.Contains(units.Expected, "ages.service") {
		return fmt.Errorf("the gate saw %+v", units)
	}
	return s.told(ctx, "osctl: reference 1.1 (slot B): committed", `osctl_state{state="committed"} 1`,
		`osctl_last_result{result="committed"} 1`, "osctl_gate_green 1")
}

// processStart is when the process of a container was started, by the machine's clock and
// to a hundredth of a second (proc(5): field 22 of its stat counts from the boot).
func (s *Story) processStart(ctx context.Context, name string) (time.Time, error) {
	out, err := s.run(ctx, `set -e; pid=$(nerdctl inspect -f '{{.State.Pid}}' `+name+`); read -r up _ </proc/uptime; now=$(date +%s.%N)
		awk -v now="$now" -v up="$up" '{printf "%.0f\n", (now - up + $22 / 100) * 1000}' /proc/$pid/stat`, 0)
	if err != nil {
		return time.Time{}, err
	}
	ms, err := strconv.ParseInt(strings.TrimSpace(out), 10, 64)
	return time.UnixMilli(ms), err
}
