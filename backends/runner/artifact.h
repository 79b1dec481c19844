// What stands between a folder and code that runs: the CPU must have what the library uses, and the library must
// be the one that lies there now. Header only.
#pragma once

#include <sys/stat.h>
#include <unistd.h>

#include <cstdlib>
#include <fstream>
#include <iterator>
#include <map>
#include <mutex>
#include <set>
#include <sstream>
#include <stdexcept>
#include <string>
#include <tuple>
#include <utility>
#include <vector>

#if defined(__aarch64__)
#include <sys/auxv.h>
#endif
#if defined(__x86_64__) && defined(__linux__)
#include <sys/syscall.h>
#endif

namespace graphwright {

// Whether this process may use AMX tile registers: Linux grants them to all its threads when it asks.
inline bool TilesGranted() {
#if defined(__x86_64__) && defined(__linux__)
  constexpr long kRequestPermission = 0x1023, kTileData = 18;  // ARCH_REQ_XCOMP_PERM and the state's number
  return syscall(SYS_arch_prctl, kRequestPermission, kTileData) == 0;
#else
  return false;
#endif
}

// The CPU's features in LLVM's spelling, if this process may use them; nothing where they cannot be told.
inline std::set<std::string> CpuFeatures() {
  std::set<std::string> found;
#if defined(__aarch64__)
  const unsigned long first = getauxval(AT_HWCAP), second = getauxval(AT_HWCAP2);  // bits of the kernel's interface
  if (first >> 1 & 1) found.insert("neon");
  if (first >> 10 & 1) found.insert("fullfp16");
  if (first >> 20 & 1) found.insert("dotprod");
  if (second >> 13 & 1) found.insert("i8mm");
#else
  static const std::map<std::string, std::string> kRenamed{
      {"pni", "sse3"}, {"sse4_1", "sse4.1"}, {"sse4_2", "sse4.2"}, {"abm", "lzcnt"}, {"bmi1", "bmi"}};
  std::ifstream file("/proc/cpuinfo");
  for (std::string line; std::getline(file, line);) {
    if (line.rfind("flags", 0) != 0) continue;
    std::istringstream words(line.substr(line.find(':') + 1));
    for (std::string word; words >> word;) {
      auto renamed = kRenamed.find(word);
      if (renamed != kRenamed.end()) word = renamed->second;
      if (word.rfind("avx", 0) == 0) {
        for (size_t at; (at = word.find('_')) != std::string::npos;) word.erase(at, 1);
      }
      if (word.rfind("amx_", 0) == 0) {
        if (!TilesGranted()) continue;
        word[3] = '-';
      }
      found.insert(word);
    }
    break;
  }
#endif
  return found;
}

// The features that an artifact's manifest asks for; none if there is no manifest.
inline std::vector<std::string> NeededFeatures(const std::string& folder) {
  std::ifstream file(folder + "/manifest.json");
  const std::string text{std::istreambuf_iterator<char>(file), {}};
  std::vector<std::string> needed;
  size_t at = text.find("\"features\"");
  if (at == std::string::npos || (at = text.find('[', at)) == std::string::npos) return needed;
  const size_t end = text.find(']', at);
  while ((at = text.find('"', at)) < end && end != std::string::npos) {
    const size_t close = text.find('"', at + 1);
    if (close == std::string::npos) break;
    needed.push_back(text.substr(at + 1, close - at - 1));
    at = close + 1;
  }
  return needed;
}

// Throws std::runtime_error that names what this CPU lacks.
inline void RequireFeatures(const std::string& folder) {
  const std::set<std::string> found = CpuFeatures();
  std::string missing;
  for (const std::string& feature : NeededFeatures(folder)) {
    if (!found.empty() && !found.count(feature)) missing += (missing.empty() ? "" : ", ") + feature;
  }
  if (!missing.empty()) throw std::runtime_error(folder + " cannot run here: this CPU lacks " + missing);
}

// Calls load(path) for the library of an artifact. For a name that it has opened before the dynamic linker returns
// what lay there then; a library that has replaced another one is therefore opened by a name of its own.
template <typename Load>
auto OpenLibrary(const std::string& folder, Load load) {
  static std::mutex mutex;
  static std::map<std::string, std::tuple<dev_t, ino_t, time_t, long>> opened;
  const std::lock_guard<std::mutex> lock(mutex);
  const std::string path = folder + "/model.so";
  struct stat status {};
  if (stat(path.c_str(), &status) != 0) throw std::runtime_error("cannot read " + path);
  const std::tuple<dev_t, ino_t, time_t, long> here{status.st_dev, status.st_ino, status.st_mtim.tv_sec,
                                                    status.st_mtim.tv_nsec};
  if (opened.emplace(path, here).first->second == here) return load(path);
  char* absolute = realpath(path.c_str(), nullptr);
  std::string place = "/tmp/graphwright-XXXXXX";
  if (!absolute || !mkdtemp(&place[0])) throw std::runtime_error("cannot open " + path + " anew");
  const std::string link = place + "/model.so";
  struct Removal {
    std::string link, place;
    char* absolute;
    ~Removal() {
      unlink(link.c_str());
      rmdir(place.c_str());
      free(absolute);
    }
  } removal{link, place, absolute};
  if (symlink(absolute, link.c_str()) != 0) throw std::runtime_error("cannot open " + path + " anew");
  return load(link);
}

}  // namespace graphwright
