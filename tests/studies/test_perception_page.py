"""The page in a real browser: Chromium, driven by Selenium, as people would use it.

Skipped where there is no browser: on Debian, `apt-get install chromium chromium-driver`.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from perception_people import pictures, written

from qhw_diffusion.studies.perception.answers import Key, read_answers

selenium = pytest.importorskip("selenium", reason="no Selenium: pip install '.[dev]'")
BROWSER = next(
    (found for name in ("chromium", "chromium-browser", "google-chrome") if (found := shutil.which(name))), None
)
DRIVER = shutil.which("chromedriver")
pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(
        BROWSER is None or DRIVER is None, reason="no browser: apt-get install chromium chromium-driver"
    ),
]


class Person:
    """Somebody in front of the page."""

    def __init__(self, driver: Any, url: str, key: dict[str, Any]) -> None:
        self.driver, self.url, self.key = driver, url, key
        self.wanted = {name: trial["pictures"] for name, trial in key["trials"].items()}

    def open(self) -> None:
        self.driver.get(self.url)

    def __getitem__(self, name: str) -> Any:
        return self.driver.find_element("id", name)

    def section(self) -> str:
        shown = [
            e.get_attribute("id") for e in self.driver.find_elements("css selector", "section") if e.is_displayed()
        ]
        assert len(shown) == 1
        return str(shown[0])

    def begin(self, rater: str) -> None:
        self["agree"].click()
        self["rater"].send_keys(rater)
        self["form"].submit()

    def ready(self) -> dict[str, Any]:
        """Waits until a choice would count; what is asked."""
        from selenium.webdriver.support.ui import WebDriverWait

        script = "return shownAt !== null && performance.now() - shownAt > LEAST_MS + 20 ? current : null"
        found: dict[str, Any] = WebDriverWait(self.driver, 10, 0.02).until(lambda d: d.execute_script(script))
        return found

    def key_press(self, name: str) -> None:
        from selenium.webdriver.common.action_chains import ActionChains
        from selenium.webdriver.common.keys import Keys

        ActionChains(self.driver).send_keys(getattr(Keys, name)).perform()

    def practise(self) -> None:
        for _ in range(2):
            asked = self.ready()
            wrong = "right" if asked["left"] == asked["right"] else "left"
            self[wrong].click()
            assert "try again" in self["feedback-text"].text
            self["next"].click()
            self.ready()
            self["left" if wrong == "right" else "right"].click()
            assert self["feedback-text"].text.startswith("Yes")
            self["next"].click()

    def answer(self, count: int, by: str = "key") -> list[str]:
        """Prefers the first run, by keyboard, mouse or touch; returns the names of the questions."""
        asked_of = []
        for _ in range(count):
            asked = self.ready()
            asked_of.append(asked["id"])
            side = "left" if asked["left"] == self.wanted[asked["id"]][0] else "right"
            if by == "key":
                self.key_press(f"ARROW_{side.upper()}")
            elif by == "click":
                self[side].click()
            else:
                box = self[side].rect
                point = {"x": box["x"] + box["width"] / 2, "y": box["y"] + box["height"] / 2}
                self.driver.execute_cdp_cmd("Input.dispatchTouchEvent", {"type": "touchStart", "touchPoints": [point]})
                self.driver.execute_cdp_cmd("Input.dispatchTouchEvent", {"type": "touchEnd", "touchPoints": []})
                self._waits_for_another(asked["id"])
        return asked_of

    def _waits_for_another(self, name: str) -> None:
        from selenium.webdriver.support.ui import WebDriverWait

        script = f"return current.id !== '{name}' || state.finished !== null"
        WebDriverWait(self.driver, 5, 0.02).until(lambda d: d.execute_script(script))


@pytest.fixture(scope="module")
def study(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, Any]]:
    folder = tmp_path_factory.mktemp("perception") / "study"
    key, _ = written(folder, pictures(n=6, known=6), checks=4)
    return folder, key


@pytest.fixture(scope="module")
def browser(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Any, Path]]:
    from selenium import webdriver

    saved = tmp_path_factory.mktemp("saved")
    options = webdriver.ChromeOptions()
    options.binary_location = str(BROWSER)
    for word in ("--headless=new", "--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage", "--window-size=360,640"):
        options.add_argument(word)
    options.add_experimental_option("prefs", {"download.default_directory": str(saved)})
    driver = webdriver.Chrome(options=options, service=webdriver.ChromeService(executable_path=DRIVER))
    driver.set_page_load_timeout(60)
    yield driver, saved
    driver.quit()


@pytest.fixture
def person(browser: tuple[Any, Path], study: tuple[Path, dict[str, Any]]) -> Iterator[Person]:
    """A phone without network and with an empty memory."""
    driver, _ = browser
    folder, key = study
    driver.execute_cdp_cmd("Network.enable", {})
    offline = {"offline": True, "latency": 0, "downloadThroughput": 0, "uploadThroughput": 0}
    driver.execute_cdp_cmd("Network.emulateNetworkConditions", offline)
    driver.execute_cdp_cmd("Emulation.setDeviceMetricsOverride",
                           {"width": 360, "height": 640, "deviceScaleFactor": 2, "mobile": True})  # fmt: skip
    driver.execute_cdp_cmd("Emulation.setTouchEmulationEnabled", {"enabled": True})
    found = Person(driver, (folder / "page.html").as_uri(), key)
    found.open()
    driver.execute_script("localStorage.clear()")
    found.open()
    yield found
    errors = [entry for entry in driver.get_log("browser") if entry["level"] == "SEVERE"]
    assert errors == []


def test_a_person_answers_all_and_hands_it_over(
    person: Person, browser: tuple[Any, Path], study: tuple[Path, dict[str, Any]]
) -> None:
    from selenium.webdriver.support.ui import WebDriverWait

    driver, saved = browser
    folder, key = study
    assert person.section() == "start"
    assert "The text of your study goes here" in person["consent"].text
    person["form"].submit()  # without consent nothing begins
    assert "tick" in person["form-note"].text
    person["rater"].send_keys("no spaces!")
    person["agree"].click()
    person["form"].submit()
    assert "letters" in person["form-note"].text
    assert person.section() == "start"
    person["rater"].clear()
    person["rater"].send_keys("anna-1")
    person["form"].submit()
    person.practise()
    asked = person.ready()
    assert person["question"].text == f"Which picture looks more like: {key['trials'][asked['id']]['text']}?"
    assert person["count"].text == "1 of 10"
    # both pictures are on a phone's screen, side by side, without scrolling
    left, right = person["left"].rect, person["right"].rect
    assert left["x"] + left["width"] < right["x"]
    assert right["x"] + right["width"] <= 360
    assert max(one["y"] + one["height"] for one in (left, right)) <= 640
    assert min(left["width"], left["height"]) > 120
    names = person.answer(3, "key") + person.answer(2, "click")
    # the second of two presses at once is no answer
    side = "left" if person.ready()["left"] == person.wanted[person.ready()["id"]][0] else "right"
    names.append(person.ready()["id"])
    driver.execute_script(f"choose('{side}'); choose('{side}')")
    assert person["count"].text == "7 of 10"
    person["pause"].click()
    assert person.section() == "paused"
    person.key_press("ARROW_LEFT")
    person.open()  # closed, and opened again
    assert person.section() == "resume"
    assert "anna-1: 6 of 10" in person["resume-text"].text
    person["go-on"].click()
    assert person["count"].text == "7 of 10"
    names += person.answer(4, "touch")
    assert person.section() == "end"
    assert sorted(names) == sorted(key["trials"])
    person.open()
    assert person.section() == "end"  # still there, until somebody else begins
    assert not person["another"].is_enabled()

    person["download"].click()
    file = saved / "answers-anna-1.json"
    WebDriverWait(driver, 10, 0.05).until(lambda _: file.exists() and file.stat().st_size)
    assert json.loads(file.read_text()) == json.loads(person["text"].get_attribute("value"))
    permissions = ["clipboardReadWrite", "clipboardSanitizedWrite"]
    driver.execute_cdp_cmd("Browser.grantPermissions", {"permissions": permissions})
    person["copy"].click()
    WebDriverWait(driver, 5, 0.05).until(lambda _: person["end-note"].text == "copied")
    assert json.loads(driver.execute_async_script("navigator.clipboard.readText().then(arguments[0])")) == json.loads(
        file.read_text()
    )
    [rater] = read_answers([file], Key.load(folder))
    assert rater.name == "anna-1"
    assert rater.first.all()
    assert (rater.checks_right, rater.checks) == (4, 4)
    assert json.loads(file.read_text())["pauses"] == 1
    assert [one["trial"] for one in json.loads(file.read_text())["answers"]] == names
    assert all(one["ms"] >= 150 for one in json.loads(file.read_text())["answers"])
    # nothing was asked of any network
    loaded = driver.execute_script("return performance.getEntriesByType('resource').map(e => e.name)")
    assert [name for name in loaded if not name.startswith(("data:", "blob:"))] == []
    person["another"].click()
    driver.switch_to.alert.accept()
    assert person.section() == "start"
    assert driver.execute_script("return localStorage.length") == 0


def test_order_and_sides_are_the_rater_s_own_and_balanced(person: Person) -> None:
    plans = {rater: person.driver.execute_script(f"return plan('{rater}')") for rater in [f"r{k}" for k in range(40)]}
    assert person.driver.execute_script("return plan('r0')") == plans["r0"]
    orders = {tuple(trial["id"] for trial in plan["trials"]) for plan in plans.values()}
    assert len(orders) == 40
    lefts: dict[str, int] = {}
    for plan in plans.values():
        assert sorted(trial["id"] for trial in plan["trials"]) == sorted(person.wanted)
        for kind, number in (("pair", 6), ("check", 4)):
            of_kind = [t for t in plan["trials"] if person.key["trials"][t["id"]]["kind"] == kind]
            left = [t["left"] == person.wanted[t["id"]][0] for t in of_kind]
            assert len(left) == number
            assert sum(left) == number // 2
            for trial, first in zip(of_kind, left, strict=True):
                lefts[trial["id"]] = lefts.get(trial["id"], 0) + first
    # over people each picture is on either side, and stands anywhere in the order
    assert all(8 <= count <= 32 for count in lefts.values())
    first_places = {plan["trials"][0]["id"] for plan in plans.values()}
    assert len(first_places) >= 8


def test_a_browser_that_keeps_nothing(person: Person) -> None:
    script = "Object.defineProperty(window, 'localStorage', {get() { throw new Error('no'); }})"
    added = person.driver.execute_cdp_cmd("Page.addScriptToEvaluateOnNewDocument", {"source": script})
    try:
        person.open()
        assert person["storage-note"].is_displayed()
        person.begin("")
        person.practise()
        person.answer(10)
        assert person.section() == "end"
        content = json.loads(person["text"].get_attribute("value"))
        assert len(content["answers"]) == 10
        assert content["rater"].startswith("r")  # a random code
        person.open()
        assert person.section() == "start"
    finally:
        person.driver.execute_cdp_cmd("Page.removeScriptToEvaluateOnNewDocument", added)
        person.open()


def test_answers_of_another_study_are_not_gone_on_with(person: Person) -> None:
    person.begin("bert")
    person.practise()
    person.answer(1)
    driver = person.driver
    driver.execute_script("const s = JSON.parse(localStorage.getItem(KEY)); s.answers[0].trial = 't9999';"
                          "localStorage.setItem(KEY, JSON.stringify(s))")  # fmt: skip
    person.open()
    assert person.section() == "start"
