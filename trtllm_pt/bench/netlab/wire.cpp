// Passes packets between network namespaces, for kernels that cannot delay packets themselves. This process owns a TUN
// device in each namespace. It passes every packet to the device of its destination after a one-way delay, and at most
// at a given rate per sender.
//
//   wire DELAY_NANOSECONDS NANOSECONDS_PER_BYTE LATE_NANOSECONDS DEVICE NAMESPACE...
//
// LATE is how late a timer fires on this machine; timers are set earlier by this time. Spinning would be more exact,
// but it would take the core of a rank that computes.
//
// A packet for host K of the subnet (the last byte of its IPv4 address is K, from 1) goes to the K-th namespace. The
// process prints "up" once the devices exist. It exits at the end of its standard input, and so with its parent.
#include <arpa/inet.h>
#include <fcntl.h>
#include <linux/if.h>
#include <linux/if_tun.h>
#include <poll.h>
#include <sched.h>
#include <sys/ioctl.h>
#include <sys/prctl.h>
#include <time.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <deque>
#include <string>
#include <vector>

namespace {

constexpr size_t kLongestPacket = 1 << 16;
constexpr size_t kLongestQueue = 4096;  // packets of one sender in this process; further ones wait in its device
constexpr int64_t kForEver = INT64_MAX;

struct Packet {
  int64_t due;
  std::vector<char> bytes;
};

struct Sender {
  int device;
  std::deque<Packet> queue;  // packets stay in order, as on a wire
  int64_t free_at = 0;       // when the rate allows the next packet to start
};

[[noreturn]] void fail(const std::string& what) {
  std::fprintf(stderr, "wire: %s: %s\n", what.c_str(), std::strerror(errno));
  std::exit(1);
}

int64_t now() {
  timespec t;
  clock_gettime(CLOCK_MONOTONIC, &t);
  return t.tv_sec * 1'000'000'000 + t.tv_nsec;
}

int open_device(const char* space, const char* name) {
  const std::string path = std::string("/run/netns/") + space;
  const int handle = open(path.c_str(), O_RDONLY);
  if (handle < 0) fail(path);
  if (setns(handle, CLONE_NEWNET)) fail("entering " + path);
  close(handle);
  const int device = open("/dev/net/tun", O_RDWR | O_NONBLOCK);
  if (device < 0) fail("/dev/net/tun");
  ifreq request{};
  request.ifr_flags = IFF_TUN | IFF_NO_PI;
  std::strncpy(request.ifr_name, name, IFNAMSIZ - 1);
  if (ioctl(device, TUNSETIFF, &request)) fail(std::string("making ") + name);
  return device;
}

class Wire {
 public:
  Wire(int64_t delay, double per_byte, int64_t late) : delay_(delay), late_(late), per_byte_(per_byte) {}

  void add(int device) { senders_.push_back(Sender{device, {}, 0}); }

  void run() {
    std::vector<pollfd> watched;
    for (const Sender& sender : senders_) watched.push_back({sender.device, POLLIN, 0});
    watched.push_back({STDIN_FILENO, POLLIN, 0});
    for (;;) {
      const int64_t next = deliver();
      timespec pause{};
      timespec* limit = nullptr;
      if (next != kForEver) {
        const int64_t left = std::max<int64_t>(0, next - now() - late_);
        pause = {left / 1'000'000'000, left % 1'000'000'000};
        limit = &pause;
      }
      if (ppoll(watched.data(), watched.size(), limit, nullptr) < 0 && errno != EINTR) fail("ppoll");
      char ignored;
      if (watched.back().revents && read(STDIN_FILENO, &ignored, 1) <= 0) return;
      for (Sender& sender : senders_) collect(sender);
    }
  }

 private:
  // Sends all packets that are due, or would be due before another timer fires. Returns the time of the next packet.
  int64_t deliver() {
    int64_t next = kForEver;
    for (Sender& sender : senders_) {
      while (!sender.queue.empty() && sender.queue.front().due <= now() + late_ / 2) {
        send(sender.queue.front().bytes);
        sender.queue.pop_front();
      }
      if (!sender.queue.empty()) next = std::min(next, sender.queue.front().due);
    }
    return next;
  }

  void send(const std::vector<char>& bytes) {
    constexpr size_t kAddress = 19;  // the last byte of an IPv4 packet's destination
    if (bytes.size() <= kAddress || (bytes[0] & 0xf0) != 0x40) return;
    const size_t host = static_cast<unsigned char>(bytes[kAddress]);
    if (host < 1 || host > senders_.size()) return;
    // A full device drops the packet, as a network would; TCP sends it again.
    if (write(senders_[host - 1].device, bytes.data(), bytes.size()) < 0 && errno != EAGAIN && errno != EIO)
      fail("write");
  }

  void collect(Sender& sender) {
    while (sender.queue.size() < kLongestQueue) {
      const ssize_t size = read(sender.device, buffer_.data(), buffer_.size());
      if (size <= 0) return;
      sender.free_at = std::max(now(), sender.free_at) + static_cast<int64_t>(size * per_byte_);
      sender.queue.push_back({sender.free_at + delay_, {buffer_.begin(), buffer_.begin() + size}});
    }
  }

  int64_t delay_, late_;
  double per_byte_;
  std::vector<Sender> senders_;
  std::vector<char> buffer_ = std::vector<char>(kLongestPacket);
};

}  // namespace

int main(int count, char** words) {
  if (count < 6) {
    std::fprintf(stderr, "wire DELAY_NANOSECONDS NANOSECONDS_PER_BYTE LATE_NANOSECONDS DEVICE NAMESPACE...\n");
    return 2;
  }
  Wire wire(std::atoll(words[1]), std::atof(words[2]), std::atoll(words[3]));
  for (int at = 5; at < count; at++) wire.add(open_device(words[at], words[4]));
  const sched_param first{1};
  sched_setscheduler(0, SCHED_FIFO, &first);  // runs before the ranks, which spin, if it has the permission
  prctl(PR_SET_TIMERSLACK, 1UL);
  std::printf("up\n");
  std::fflush(stdout);
  wire.run();
}
